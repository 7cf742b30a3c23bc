"""An answer is written at once, whatever its shape."""

from __future__ import annotations

import asyncio

from app.protocol import OneWrite


class Written(list[bytes]):
    write = list.append

    def close(self) -> None:
        self.append(b"closed")


def written(*parts: bytes, close: bool = False) -> list[bytes]:
    async def run() -> list[bytes]:
        transport = OneWrite(found := Written())
        for part in parts:
            transport.write(part)
        if close:
            transport.close()
        await asyncio.sleep(0)
        return found

    return asyncio.run(run())


HEAD, BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"{}"


def test_head_and_body_are_one_write() -> None:
    assert written(HEAD, BODY) == [HEAD + BODY]
    assert written(HEAD, BODY, HEAD, BODY) == [HEAD + BODY] * 2
    assert written(HEAD, b"more", b"HTTP/1.1 in a body", b"!") == [HEAD + b"more", b"HTTP/1.1 in a body!"]


def test_an_answer_without_a_body_leaves_too() -> None:
    assert written(HEAD) == [HEAD]
    assert written(HEAD, close=True) == [HEAD, b"closed"]
    assert written(HEAD, BODY, close=True) == [HEAD + BODY, b"closed"]
