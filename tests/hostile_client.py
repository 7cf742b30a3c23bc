"""One hostile client in a process of its own: `python -m tests.hostile_client PORT SECONDS`, its Kind as JSON on stdin."""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec


class Kind(msgspec.Struct, frozen=True):
    """Says `first` on each connection, then `more` again and again, `every` so many seconds; `reads` what is answered."""

    first: bytes = b""
    more: bytes = b""
    every: float = 0.0
    connections: int = 50
    reads: bool = True
    closes: bool = False  # at once, and connects anew


async def _connection(kind: Kind, port: int, until: float) -> None:
    while time.time() < until:
        writer = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(kind.first)
            while time.time() < until and not kind.closes and not reader.at_eof():
                writer.write(kind.more)
                async with asyncio.timeout(2):
                    await writer.drain()
                    if kind.reads and kind.more and not kind.first:  # a whole request
                        await reader.read(2**16)
                await asyncio.sleep(kind.every)
        except (OSError, TimeoutError):
            await asyncio.sleep(0.01)
        finally:
            if writer:
                writer.transport.abort()


async def _attack(kind: Kind, port: int, seconds: float) -> None:
    print(flush=True)
    until = time.time() + seconds
    await asyncio.gather(*[_connection(kind, port, until) for _ in range(kind.connections)])


if __name__ == "__main__":
    asyncio.run(_attack(msgspec.json.decode(sys.stdin.buffer.read(), type=Kind), int(sys.argv[1]), float(sys.argv[2])))
