"""The errors a user can cause, each one line that names where and what."""


class InputError(ValueError):
    """A file, key or value the user gave is wrong. The command line prints it and exits with status 2."""


class NotHere(InputError):
    """What the user gave is right, but this machine lacks what it takes: a key in the environment, an imported model, a package."""


class BudgetExceeded(RuntimeError):
    """An arm asked for more of a unit than its budget has left."""

    def __init__(self, arm: str, unit: str, asked: float, left: float) -> None:
        super().__init__(arm, unit, asked, left)  # all four as args, so the error survives pickling
        self.arm, self.unit, self.asked, self.left = arm, unit, asked, left

    def __str__(self) -> str:
        return f"budget exceeded: arm {self.arm}, unit {self.unit}: asked {self.asked:g}, left {self.left:g}"
