"""What can be wrong with the machine or the call, said so that a person can mend it."""

from typing import NamedTuple


class Said(NamedTuple):
    """One sentence in the two languages of the command line."""

    zh: str
    en: str


class SetupError(Exception):
    """
    Something outside the program stands in the way: a missing library, a taken port, a full disk.

    Nothing is retried: the command prints `str(error)`, one line, and exits with 2.
    """

    def __init__(self, problem: Said, remedy: Said, code: str = "") -> None:
        """With the `code` of a service's refusal, where it was one."""
        self.code = code
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem, remedy)

    def __str__(self) -> str:
        return f"{self.problem.zh}；{self.remedy.zh} / {self.problem.en}; {self.remedy.en}"
