"""The answer to another system that may have missed something: what it was to be told since then.

`GET /notifications/<name>?since=<ISO time>` answers the events, heard or not, and `until`: the
answer is complete up to there, ask again from there. It is signed as our notifications are, with
the same secret, over the path with its query.
"""

import signal
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from types import FrameType
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Header, HTTPException, Request
from pydantic import AwareDatetime

from everycent.database.message_reads import ToldPage, told
from everycent.database.reads import Reader
from everycent.gateways.notification import is_signed
from everycent.settings import NotifySettings


def create_app(
    reader: Reader, others: Mapping[str, NotifySettings], *, now: Callable[[], datetime]
) -> FastAPI:
    """Answer other systems; each reads only what was meant for it."""
    app = FastAPI(title="everycent notifications", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/notifications/{name}")
    async def notifications(
        name: str,
        since: AwareDatetime,
        request: Request,
        everycent_signature: Annotated[str, Header()] = "",
    ) -> ToldPage:
        asked = f"{request.url.path}?{request.url.query}".encode()
        secret = others[name].secret if name in others else ""
        at = now()
        signed = is_signed(secret, everycent_signature, asked, seconds_now=int(at.timestamp()))
        if not secret or not signed:
            raise HTTPException(401, "the signature is not of this system, or too old")
        return await told(reader, name, since=since, now=at)

    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)
