"""The errors that a user can cause. Each is one line that names the place and the problem."""

MOST = 2000  # characters of a message


def shortened(text: str, most: int = MOST) -> str:
    """The text, without its middle where it has more than so many characters."""
    return text if len(text) <= most else f"{text[: most // 2 - 3]} ... {text[len(text) - most // 2 + 2 :]}"


class InputError(ValueError):
    """A file, key or value from the user is wrong. The command line prints the message and exits with status 2.

    The message is one short line, whatever text it quotes: white space of any kind becomes one blank, and a long one loses its middle.
    """

    def __init__(self, message: object) -> None:
        super().__init__(shortened(" ".join(str(message).split())))


class NotHere(InputError):
    """The input is right, but this machine lacks something it needs: a key in the environment, an imported model, a package."""


class BudgetExceeded(RuntimeError):
    """An arm needs more of a unit than its budget has left."""

    def __init__(self, arm: str, unit: str, needed: float, left: float) -> None:
        super().__init__(arm, unit, needed, left)  # all four as args, so the error survives pickling
        self.arm, self.unit, self.needed, self.left = arm, unit, needed, left

    def __str__(self) -> str:
        return f"budget exceeded: arm {self.arm}, unit {self.unit}: needs {self.needed:g}, has {self.left:g} left"
