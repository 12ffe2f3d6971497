"""The end of a connection, on real sockets whose other side is gone."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast

from awq_edge.serve.protocol import _Lingering


def test_closing_a_connection_that_the_client_has_reset_raises_nothing() -> None:
    """The reset is there before the event loop has read of it: shutdown() says ENOTCONN."""

    async def close_after_reset() -> None:
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        listener.close()
        _, writer = await asyncio.open_connection(sock=accepted)
        transport = cast(asyncio.Transport, writer.transport)
        transport.pause_reading()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # a reset instead of an end
        lingering = _Lingering(transport, loop)
        lingering.close()
        assert lingering.is_closing() and transport.is_closing()

    asyncio.run(close_after_reset())
