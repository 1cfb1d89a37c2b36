"""HTTP to one chat server and to nobody else: no credentials, cookies, redirects or proxies that nobody has named."""

import asyncio
import errno
import json
import os
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # pyright: ignore[reportAttributeAccessIssue] (not in its stubs)

from apo_bench.clients.endpoint import Endpoint, is_loopback
from apo_bench.clients.rate_limit import retry_after_s
from apo_bench.clients.replies import CallError, error_of, read_json
from apo_bench.errors import InputError

PIECE = 2**16  # bytes read at a time
LEAST_LIMIT, BYTES_A_TOKEN = 2**20, 2**12  # of a reply: 20 alternatives a token, each with its bytes, are below


class Connection:
    """Connections to one endpoint, which belong to the running event loop."""

    def __init__(self, endpoint: Endpoint, key: str | None, tls: ssl.SSLContext, max_tokens: int, fresh: bool) -> None:
        import aiohttp

        self.endpoint = endpoint
        self.most_bytes = LEAST_LIMIT + BYTES_A_TOKEN * max_tokens
        self.options = {"proxy": proxy_for(endpoint.base_url), "ssl": tls, "allow_redirects": False}
        self.session = aiohttp.ClientSession(
            headers=headers(endpoint, key) | ({"Cache-Control": "no-cache"} if fresh else {}),
            connector=aiohttp.TCPConnector(limit=endpoint.concurrency),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # it would also read passwords from .netrc
        )

    async def post(self, body: Mapping[str, Any], now: float) -> bytes:
        """The content of the answer to a request. `now`: seconds since 1970, for a date in Retry-After. Raises CallError."""
        import aiohttp

        data, url = json.dumps(body).encode("utf-8", "replace"), self.endpoint.url
        try:
            async with asyncio.timeout(self.endpoint.timeout_s), self.session.post(url, data=data, **self.options) as response:
                content = bytearray()
                async for piece in response.content.iter_chunked(PIECE):
                    content += piece
                    if len(content) > self.most_bytes:
                        raise CallError(f"a reply of more than {self.most_bytes / 2**20:.3g} MiB", again=False, lost=True)
        except TimeoutError:
            raise CallError(f"no answer within {self.endpoint.timeout_s:g} s", lost=True) from None
        except aiohttp.ClientConnectorError as error:
            raise CallError(f"cannot connect to {self.endpoint.base_url}", _reason(error), hopeless=True) from None
        except (aiohttp.ClientHttpProxyError, aiohttp.InvalidURL) as error:
            raise CallError(f"cannot connect to {self.endpoint.base_url}", f"proxy: {error}", hopeless=True) from None
        except (aiohttp.ClientError, OSError):
            raise CallError("connection lost", lost=True) from None
        if not 200 <= response.status < 300:
            wait = retry_after_s(response.headers.get("retry-after"), now)
            raise error_of(response.status, _body(bytes(content)), wait)
        return bytes(content)

    async def close(self) -> None:
        await self.session.close()


def headers(endpoint: Endpoint, key: str | None) -> dict[str, str]:
    """The headers of every request. The endpoint's own may hold {api_key}; otherwise the key goes where OpenAI has it."""
    own = {name: value.replace("{api_key}", key or "") for name, value in endpoint.headers.items()}
    elsewhere = any("{api_key}" in value for value in endpoint.headers.values())
    bearer = {"Authorization": f"Bearer {key}"} if key and not elsewhere else {}
    return {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity", **bearer, **own}


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a server, none for one on this machine. Raises InputError for one that is not HTTP."""
    parts = urlsplit(url)
    proxies = getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_loopback(url) or proxy_bypass_environment(parts.netloc):
        return None
    scheme = proxy.partition("://")[0] if "://" in proxy else "http"
    if scheme not in ("http", "https"):  # only the scheme is shown: there may be a password
        raise InputError(
            f"base_url: {scheme}:// is not supported as a proxy (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY); NO_PROXY names exceptions"
        )
    return proxy if "://" in proxy else f"http://{proxy}"


def _reason(error: BaseException) -> str:
    """Why there is no connection, in the system's words."""
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(inner, OSError) and inner.errno is not None and inner.errno in errno.errorcode and not isinstance(inner, ssl.SSLError):
        return os.strerror(inner.errno)  # asyncio's own words name the address once more
    return str(getattr(inner, "verify_message", "") or getattr(inner, "strerror", "") or inner)


def _body(content: bytes) -> Any:
    """What an error says of itself: JSON, or a text."""
    try:
        value = read_json(content)
        return value.get("error") or value if isinstance(value, Mapping) else value
    except ValueError:
        return content[:PIECE].decode("utf-8", "replace")
