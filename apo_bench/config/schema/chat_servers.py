"""A model behind the OpenAI chat-completions protocol, as sections of the file have it: all that `clients.endpoint.ChatSettings` takes."""

from typing import Any, Literal

from pydantic import Field

from apo_bench.config.schema.values import Section


class ChatServer(Section):
    """Where a chat model is served, how it is sampled, how hard it may be asked and what it costs; keys and defaults of a chat judge."""

    model: str
    """the model's name, as the server knows it"""

    base_url: str
    """the server, such as `https://api.openai.com/v1` or `http://localhost:8000/v1`"""

    api_key_env: str | None = ""
    """the environment variable that holds the API key; `null`: none is needed, which is the default for a server on this machine"""

    served_as: str | None = None
    """a name for a server that moves: keys hold it in place of `base_url`"""

    temperature: float | None = 0.0
    """`null`: not sent"""

    max_tokens: int = Field(default=512, ge=1)
    """longest answer, thoughts included; 1: the next token's probabilities are read, whatever it is, which suits small models"""

    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """what the server calls it"""

    seed: int | None = 0
    """`null`: not sent"""

    extra: dict[str, Any] = Field(default_factory=dict)
    """further fields of the request"""

    concurrency: int = Field(default=16, ge=1)
    """calls at a time"""

    timeout_s: float = Field(default=60.0, gt=0)
    """seconds for one attempt"""

    max_attempts: int = Field(default=6, ge=1)
    """attempts a call"""

    max_wait_s: float = Field(default=60.0, gt=0)
    """longest wait between two attempts, in seconds"""

    usd_per_million_prompt_tokens: float = Field(default=0.0, ge=0)
    """price"""

    usd_per_million_completion_tokens: float = Field(default=0.0, ge=0)
    """price"""

    max_usd: float | None = Field(default=None, ge=0)
    """most that the run pays for this model's answers; each worker stops there by what it knows when it begins"""

    system: Literal["own", "merged", "none"] = "own"
    """the system prompt is a message of its own, stands at the head of the user's (for servers that refuse the role), or is left out"""

    headers: dict[str, str] = Field(default_factory=dict)
    """headers that are sent too; `{api_key}` in one stands for the key, which is then sent nowhere else"""

    api_version: str | None = None
    """sent as `?api-version=...`, as Azure has it"""
