"""WebSocket as others implement it. Arguments: `server`, or `client` and one or more URIs."""

import asyncio
import os
import ssl
import sys

import websockets

LARGE = bytes(range(256)) * 8192


async def serve():
    async def repeat(connection):
        async for message in connection:
            if message == "close":
                await connection.close(4001, "as asked")
            await connection.send(message)

    async with websockets.serve(repeat, "127.0.0.1", 0, max_size=None) as server:
        print("port", server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().create_future()


async def converse(uri, proxy):
    options = {"max_size": None, "proxy": proxy}
    if "CA" in os.environ:
        options["ssl"] = ssl.create_default_context(cafile=os.environ["CA"])
        options["host"], options["port"] = os.environ["CONNECT"].split(":")
    async with websockets.connect(uri, **options) as connection:
        for message in ["hello", "", "ü" * 70_000, b"\0\1\2", LARGE]:
            await connection.send(message)
            assert await connection.recv() == message, message[:20]
        await connection.send(iter(["in ", "several ", "frames"]))
        assert await connection.recv() == "in several frames"
        await (await connection.ping(b"there?"))
        await asyncio.gather(*(connection.send(str(number)) for number in range(100)))
        assert [await connection.recv() for _ in range(100)] == [str(n) for n in range(100)]
        await connection.send("close")
        await connection.wait_closed()
        assert (connection.close_code, connection.close_reason) == (4001, "as asked")


if sys.argv[1] == "server":
    asyncio.run(asyncio.wait_for(serve(), 60))
else:
    uri, proxy = sys.argv[2], (sys.argv + [None])[3]
    asyncio.run(asyncio.wait_for(converse(uri, proxy), 20))
