"""A model over HTTP: onnxruntime behind FastAPI, requests that meet are answered in one batch.

    GET  /health   {"status": "ok", "kind": ..., "labels": [...], "waiting": N}
    POST /predict  {"texts": [TEXT or [FIRST, SECOND], ...]} -> {"predictions": [...]}

A prediction is what `jaxbert.evaluation.predictions.describe` says of a text.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import fastapi
import numpy as np
import pydantic
import uvicorn

from jaxbert.data.packing import Examples
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.export import FILES, ask
from jaxbert.files import check_seal, read_object
from jaxbert.interop import hub, onnx
from jaxbert.serving import Asking, TextModel

MOST_BYTES = 4 << 20  # of a request
MOST_CHARACTERS = 100_000  # of a text
_FIX = "write it with: jaxbert export RUN --to=FOLDER --format=onnx,onnx-int8"
Text = Annotated[str, pydantic.Field(max_length=MOST_CHARACTERS)]


class OnnxModel(TextModel):
    """An exported model, asked through onnxruntime; weights for jax need not be there.

    Args:
      folder: what ``jaxbert export`` wrote.
      quantized: ask the int8 model.
      threads: of one operator; 0 = as many as there are cores.

    Raises:
      UserError: it holds no such model, or not what was written.
    """

    def __init__(self, folder: Path, *, quantized: bool = False, threads: int = 0) -> None:
        file = folder / FILES["onnx-int8" if quantized else "onnx"]
        if not file.is_file():
            raise UserError(f"no {file.name}", str(file.parent), _FIX)
        for place in (folder, file.parent):
            check_seal(place, "export it anew")
        report = read_object(folder / hub.REPORT, _FIX)
        try:
            self.kind, self.labels = report["kind"], tuple(report["labels"])
            self.max_length = report["max_length"]
            self._asking = Asking(**report["asking"])
        except (KeyError, TypeError) as error:
            raise UserError(f"not understood: {error}", str(folder / hub.REPORT), _FIX) from error
        if not self.kind:
            fix = "export the model of a task, or ask this one for embeddings: jaxbert.load"
            raise UserError("the model has no head that predicts", str(folder), fix)
        self.folder, self._tokenizer = folder, load_tokenizer(folder)
        self._session = onnx.Session(file, threads)

    def ask(self, examples: Examples, *, batch_size: int = 32) -> np.ndarray:
        """What the model says of examples, as `TextModel.ask`, in padded batches as they come."""
        return ask(self._session, examples, self.kind, self._tokenizer.pad_id, batch_size)

    def encode(self, *args: Any, **words: Any) -> np.ndarray:
        """Not offered."""
        raise UserError("an exported model is asked for predictions", str(self.folder), "load it")


class Batcher:
    """Puts the texts of requests that wait at one time into one batch.

    Args:
      model: what is asked.
      most: texts a batch; a request of more is a batch of its own.
      wait: seconds that the first text waits for company.
      room: texts that may wait.

    Attributes:
      waiting: texts that have been asked and not answered.
    """

    def __init__(self, model: TextModel, most: int, wait: float, room: int) -> None:
        self._model, self._most, self._wait, self._room = model, most, wait, room
        self._queue: asyncio.Queue[tuple[Sequence[Any], asyncio.Future]] = asyncio.Queue()
        self.waiting = 0

    async def predict(self, texts: Sequence[Any]) -> list[dict[str, Any]]:
        """What the model says of a request's texts.

        Raises:
          OverflowError: too many wait.
          UserError: something that is no text for this model.
        """
        if self.waiting + len(texts) > self._room:
            raise OverflowError
        answer: asyncio.Future = asyncio.get_running_loop().create_future()
        self.waiting += len(texts)
        try:
            await self._queue.put((texts, answer))
            return await answer
        finally:
            self.waiting -= len(texts)

    async def run(self) -> None:
        """Answers for ever."""
        while True:
            requests = [await self._queue.get()]
            clock = asyncio.get_running_loop().time
            until = clock() + self._wait
            while sum(len(texts) for texts, _ in requests) < self._most:
                left = until - clock()
                try:
                    if left <= 0:  # no longer, but what is there already comes along
                        requests.append(self._queue.get_nowait())
                    else:
                        requests.append(await asyncio.wait_for(self._queue.get(), left))
                except (asyncio.QueueEmpty, TimeoutError):
                    break
            await self._answer(requests)

    async def _answer(self, requests: list[tuple[Sequence[Any], asyncio.Future]]) -> None:
        texts = [text for asked, _ in requests for text in asked]
        try:
            said = await asyncio.to_thread(self._model.predict, texts, batch_size=self._most)
        except Exception as error:
            if len(requests) > 1:  # one of them is wrong, the others are not
                for request in requests:
                    await self._answer([request])
            elif not requests[0][1].done():
                requests[0][1].set_exception(error)
            return
        for asked, answer in requests:
            mine, said = said[: len(asked)], said[len(asked) :]
            if not answer.done():  # who asked may have left
                answer.set_result(mine)


class Question(pydantic.BaseModel):
    """A request: texts, or pairs of them."""

    texts: list[Text | tuple[Text, Text]] = pydantic.Field(max_length=256)


def make_app(model: TextModel, *, most: int, wait: float, room: int) -> fastapi.FastAPI:
    """The service.

    Args:
      model: what is asked.
      most: as of `Batcher`.
      wait: as of `Batcher`.
      room: as of `Batcher`.
    """
    batcher = Batcher(model, most, wait, room)

    @contextlib.asynccontextmanager
    async def live(app: fastapi.FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = fastapi.FastAPI(title="jaxbert", lifespan=live)

    @app.middleware("http")
    async def limit(request: fastapi.Request, go_on: Any) -> Any:
        size = request.headers.get("content-length", "")
        # A chunked body may be longer than what it says, and is read to its end.
        known = size.isdecimal() and "transfer-encoding" not in request.headers
        if request.method == "POST" and not (known and int(size) <= MOST_BYTES):
            code = 413 if known else 411
            said = {"detail": f"a request has a length, of at most {MOST_BYTES} bytes"}
            return fastapi.responses.JSONResponse(said, code)
        return await go_on(request)

    @app.exception_handler(fastapi.exceptions.RequestValidationError)
    async def refuse(request: fastapi.Request, error: Any) -> Any:
        # Without what was sent: that may be long, and no text at all.
        said = [{"loc": one["loc"], "msg": one["msg"]} for one in error.errors()]
        return fastapi.responses.JSONResponse({"detail": said}, 422)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        said = {"status": "ok", "kind": model.kind, "labels": list(model.labels)}
        return said | {"waiting": batcher.waiting}

    @app.post("/predict")
    async def predict(question: Question) -> dict[str, Any]:
        if len(question.texts) > room:  # which no waiting would change
            raise fastapi.HTTPException(413, f"a request has at most {room} texts")
        try:
            return {"predictions": await batcher.predict(question.texts)}
        except OverflowError:
            raise fastapi.HTTPException(503, "too many wait", {"Retry-After": "1"}) from None
        except UserError as error:
            raise fastapi.HTTPException(422, error.line) from error

    return app


def serve(app: fastapi.FastAPI, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM; requests under way are answered first.

    Args:
      app: the service.
      host: an address of this machine.
      port: 0 takes a free one; the one that is taken is printed.

    Raises:
      UserError: the port cannot be had.
    """
    try:
        listener = socket.create_server((host, port), backlog=2048)
    except (OSError, OverflowError) as error:
        where = f"flags --host={host} --port={port}"
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen there: {why}", where, "give others") from error
    print(f"http://{host}:{listener.getsockname()[1]}", flush=True)
    # By name, not what happens to be installed: another parser has other limits and other words.
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=20, http="h11")
    with contextlib.suppress(KeyboardInterrupt):  # it raises the signal again when all is done
        uvicorn.Server(config).run(sockets=[listener])
