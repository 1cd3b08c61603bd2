"""What a request may cost before anybody looks into it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiError


class BodyLimit:
    """ASGI middleware: whoever reads more than `largest` bytes of a request's body gets an ApiError (413)."""

    def __init__(self, app: ASGIApp, largest: int) -> None:
        self.app = app
        self.largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.largest:
                raise ApiError(
                    413,
                    f"the body is larger than {self.largest} bytes; send less in one request",
                    code="request_too_large",
                )
            return message

        await self.app(scope, counting, send)
