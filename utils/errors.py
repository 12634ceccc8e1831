"""The one exception that users are meant to see, and how scripts show it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Input that the user can put right: the message names the file, what was expected, what to do.

    Scripts print it as one line and leave with status 2, without a traceback. Anything else that
    escapes is a bug and keeps its traceback.
    """


def require(condition: bool, message: str) -> None:
    """Raise UserError(message), "what is there: what was expected", unless the condition holds."""
    if not condition:
        raise UserError(message)


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run `main`; turn a `UserError` into `error: ...` on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
