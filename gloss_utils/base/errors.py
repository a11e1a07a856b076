"""The one exception that is meant for the user: a line that says what, where and what to do."""


class GlossError(Exception):
    """Bad input or a missing stage. Its message is one line and needs no traceback."""

    def _render_traceback_(self) -> list[str]:
        # IPython shows this in place of a traceback: in a notebook, the line is all there is to read.
        return [f"GlossError: {self}"]


class Interrupted(GlossError):
    """The user, or the system, asked the run to end."""
