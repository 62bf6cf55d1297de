"""One ClassifyStream call: requests read no faster than answers are read.

At most `stream_window` requests are in work; a place is free again when its answer has been taken. So a caller who
stops reading stops being read, and holds one window of answers and nothing else. After `stall_seconds` its work is
given up; gRPC can send a status only after the answer that nobody takes, so the call itself ends when the caller reads
again, hangs up, or its connection has its age.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc

from bundle.errors import RequestRefused
from serving.gateway import failures
from serving.gateway.asked import MAX_ID_BYTES
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.handlers import well_formed

if TYPE_CHECKING:
    from serving.gateway.service import Call, FieldmarkService

ONE = "ClassifyStream/request"  # what counts and logs call one request of a stream


class ClassifyStream:
    """`run` returns when the caller has sent its last request and has every answer; raises RequestRefused."""

    def __init__(self, service: "FieldmarkService", call: "Call", context: Any) -> None:
        self._service, self._call, self._context = service, call, context
        self._window = asyncio.Semaphore(service.options.stream_window)
        self._writing = asyncio.Lock()
        self._stopped = False
        self._unread: asyncio.Future[None] | None = None  # the write that nobody takes

    async def run(self) -> None:
        """Work through the stream."""
        service = self._service
        if service.open_streams >= service.options.streams:
            raise RequestRefused(
                f"{service.options.streams} streams are open, and no more are allowed",
                hint="Close one, or send single requests.",
                reason=failures.TOO_MANY_STREAMS,
                retry_after=1.0,
            )
        service.open_streams += 1
        try:
            async with asyncio.TaskGroup() as group:
                while (message := await self._next()) is not None:
                    group.create_task(self._answer(message))
        except BaseExceptionGroup as problems:
            if self._unread is None:
                raise problems.exceptions[0] from None
        finally:
            service.open_streams -= 1
        if self._unread is not None:
            await self._let_go(self._unread)
        if self._stopped:
            raise failures.stopping()

    async def _next(self) -> v1.ClassifyStreamRequest | None:
        """The next request, once there is a place for it; None at the end."""
        await self._window.acquire()
        await self._service.stream_memory.room()
        if (seconds := self._service.pace.take(self._call.key_name)) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._service.stopping.wait(), seconds)
        read = asyncio.ensure_future(self._context.read())
        stop = asyncio.ensure_future(self._service.stopping.wait())
        try:
            await asyncio.wait(
                (read, stop), timeout=self._service.options.idle_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if read.done():
                message = read.result()
                if message is grpc.aio.EOF:
                    self._service.pace.give_back(self._call.key_name)
                return None if message is grpc.aio.EOF else well_formed(message)
            if stop.done():  # what is in work is answered before the stream ends
                self._stopped = True
                return None
            raise RequestRefused(
                f"nothing was sent for {self._service.options.idle_seconds:g} seconds", reason=failures.STREAM_IDLE
            )
        finally:
            read.cancel()
            stop.cancel()

    async def _answer(self, message: v1.ClassifyStreamRequest) -> None:
        size = len(message.request.image)
        with self._service.stream_memory.hold(size):
            response = await self._respond(message)
        async with self._writing:
            write = asyncio.ensure_future(self._context.write(response))
            if not (await asyncio.wait((write,), timeout=self._service.options.stall_seconds))[0]:
                self._unread = write
                raise _unread(self._service.options.stall_seconds)
            write.result()
        self._window.release()

    async def _let_go(self, write: "asyncio.Future[None]") -> None:
        """Wait, holding nothing, until a status can be sent; raises RequestRefused, which is that status."""
        self._service.stalled_streams += 1
        try:
            await write
        finally:
            self._service.stalled_streams -= 1
        raise _unread(self._service.options.stall_seconds)

    async def _respond(self, message: v1.ClassifyStreamRequest) -> v1.ClassifyStreamResponse:
        call = self._service.begin(ONE, self._context, within=self._call)
        try:
            if len(message.id.encode()) > MAX_ID_BYTES:
                raise RequestRefused(
                    f"the id has more than {MAX_ID_BYTES} bytes", reason=failures.ID_TOO_LONG, field="id"
                )
            answer = await self._service.classify(message.request, call, patient=True)
        except BaseException as problem:
            refused = self._service.ended(call, problem)
            if refused is None:
                raise
            return _error("" if refused.reason == failures.ID_TOO_LONG else message.id, refused)
        self._service.ended(call, None, answer)
        return v1.ClassifyStreamResponse(id=message.id, response=answer)


def _unread(seconds: float) -> RequestRefused:
    return RequestRefused(f"the answers were not read for {seconds:g} seconds", reason=failures.STREAM_NOT_READ)


def _error(identity: str, refused: RequestRefused) -> v1.ClassifyStreamResponse:
    error = v1.StreamError(
        code=failures.code_number(refused), reason=refused.reason, message=failures.sentence(refused)
    )
    if refused.retry_after is not None:
        failures.set_seconds(error.retry_after, refused.retry_after)
    return v1.ClassifyStreamResponse(id=identity, error=error)
