"""Where our errors become Temporal's and Temporal's become ours again."""

import contextlib
from collections.abc import Iterator

from temporalio.exceptions import ActivityError, ApplicationError, ApplicationErrorCategory

from everycent.errors import (
    Bug,
    EverycentError,
    InvalidRequest,
    NotPaidYet,
    Unknown,
    by_name,
    class_of,
)


@contextlib.contextmanager
def errors_for_temporal() -> Iterator[None]:
    """Give Temporal our class as the `type` of an ApplicationError; what is retried follows.

    Transient and Unknown are sent again under the same key; Bug and InvalidRequest never are. A
    failed assert is a Bug: it stands before the write that it guards. What only has to be asked
    again later is no failure: nobody needs to be told where in the code it was said.
    """
    try:
        yield
    except NotPaidYet as error:
        raise ApplicationError(
            str(error), type=NotPaidYet.__name__, category=ApplicationErrorCategory.BENIGN
        ) from None
    except EverycentError as error:
        raise ApplicationError(
            str(error),
            type=type(error).__name__,
            non_retryable=issubclass(class_of(type(error)), Bug | InvalidRequest),
        ) from error
    except AssertionError as error:
        raise ApplicationError(str(error), type=Bug.__name__, non_retryable=True) from error


def error_of(error: ActivityError) -> EverycentError:
    """Return the error that an activity ended with, in our classes; a time-out is `Unknown`.

    An error that is none of ours (a crash in our code, a decoding failure) is taken as Unknown: it
    may have happened after the write.
    """
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.type:
        ours = by_name(cause.type)
        if ours is not None:
            return ours(cause.message)
    return Unknown(f"{error.activity_type} gave no answer: {cause or error}")
