"""A client that we did not write, at a terminal's sockets: `websockets` from PyPI, with `pyte` as the terminal behind it.

Arguments: the server's address (host:port), a token, the workspace's id. Every wait has an end; the last line is "ok".
"""

import asyncio
import json
import sys
import urllib.request

import pyte
import websockets

ADDRESS, TOKEN, WORKSPACE = sys.argv[1:4]
API = f"/api/workspaces/{WORKSPACE}"


def call(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{ADDRESS}{API}{path}", data, method=method)
    request.add_header("Authorization", f"Bearer {TOKEN}")
    if data is not None:
        request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


class Client:
    def __init__(self, ws, cols=80, rows=24):
        self.ws = ws
        self.screen = pyte.Screen(cols, rows)
        self.stream = pyte.Stream(self.screen)
        self.text = ""
        self.news = []

    async def step(self):
        message = await asyncio.wait_for(self.ws.recv(), 30)
        if isinstance(message, bytes):
            message = message.decode("utf-8")  # strict: a torn character is an error
        elif self.ws.subprotocol is None:
            self.news.append(json.loads(message))
            return
        self.text += message
        self.stream.feed(message)

    async def until(self, what, ready):
        while not ready():
            try:
                await self.step()
            except Exception as error:
                raise AssertionError(f"in vain for {what}: {error!r}\n" + "\n".join(self.screen.display)) from error

    async def shows(self, line):
        await self.until(line, lambda: line in (row.rstrip() for row in self.screen.display))

    async def type(self, text):
        await self.ws.send(json.dumps({"t": "i", "d": text}))


def connect(path, **more):
    return websockets.connect(f"ws://{ADDRESS}{API}{path}", open_timeout=30, close_timeout=10, **more)


async def shell():
    offered = ["sandboxed", f"jwt.{TOKEN}"]
    async with connect("/shell?cols=80&rows=24", subprotocols=offered) as ws:
        assert ws.subprotocol == "sandboxed", ws.subprotocol
        client = Client(ws)
        await client.type("PS1='$ '; clear; echo gr\u00fcn \U0001d11e; stty size\r")
        await client.shows("gr\u00fcn \U0001d11e")
        await client.shows("24 80")
        # Our pings are answered, and what comes in pieces is one message.
        await asyncio.wait_for(await ws.ping(b"are you there"), 10)
        whole = json.dumps({"t": "i", "d": "clear; echo in pieces\r"})
        await ws.send(whole[at : at + 3] for at in range(0, len(whole), 3))
        await client.shows("in pieces")
        # A paste of 60,000 characters, as one message.
        await client.type("clear; stty -echo; wc -c\r")
        await client.until("wc", lambda: "wc -c" in client.text)
        await asyncio.sleep(0.3)
        await client.type("".join("x" * 999 + "\n" for _ in range(60)))
        await client.type("\x04")
        await client.shows("60000")
        await client.type("stty echo; cd /; clear; echo left here\r")
        await client.shows("left here")
    async with connect("/shell", subprotocols=offered) as ws:
        client = Client(ws)
        await client.shows("left here")
        await client.type("clear; pwd; exit 6\r")
        await client.shows("/")
        try:
            while True:
                await client.step()
        except websockets.exceptions.ConnectionClosedOK as closed:
            assert closed.rcvd.code == 1000, closed.rcvd
            assert json.loads(closed.rcvd.reason)["exit_code"] == 6, closed.rcvd


async def terminal():
    made = call("POST", "/terminals", {"cols": 90, "rows": 30, "command": "PS1='$ ' exec bash --norc --noprofile"})
    path = f"/terminals/{made['id']}"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with connect(f"{path}/ws", additional_headers=headers) as ws:
        client = Client(ws, 90, 30)
        await ws.send(b"clear; for i in $(seq 1 200); do echo \"row $i \xc3\xa4\"; done; tput setaf 2; echo green; tput sgr0\r")
        await client.shows("green")
        await ws.send(b"tput cup 5 10; tput rev; printf here; tput sgr0; tput cup 20 0; tput ed; echo end\r")
        await client.shows("end")
        await client.until("the prompt", lambda: client.screen.display[21].startswith("$"))
        assert {"t": "role", "writes": True} in client.news and {"t": "size", "c": 90, "r": 30} in client.news, client.news
        view = call("GET", f"{path}/screen?format=json")
        assert [row.rstrip() for row in client.screen.display] == view["lines"], (client.screen.display, view["lines"])
        assert (client.screen.cursor.x, client.screen.cursor.y) == (view["cursor"]["col"], view["cursor"]["row"])
        # Who comes back, with another terminal behind it, sees the same: characters, colours, cursor.
        async with connect(f"{path}/ws?mode=read", additional_headers=headers) as second:
            again = Client(second, 90, 30)
            await again.until("the picture", lambda: again.text)
            assert again.screen.display == client.screen.display
            for row in range(30):
                for col in range(90):
                    ours, theirs = client.screen.buffer[row][col], again.screen.buffer[row][col]
                    assert ours == theirs, (row, col, ours, theirs)
            assert (again.screen.cursor.x, again.screen.cursor.y) == (client.screen.cursor.x, client.screen.cursor.y)
    assert call("DELETE", path)["ended_by"] == "deleted"


async def many():
    """Sockets that come and go leave nothing behind."""
    made = call("POST", "/terminals", {"command": "cat"})
    path = f"/terminals/{made['id']}"
    headers = {"Authorization": f"Bearer {TOKEN}"}

    async def visit(number):
        async with connect(f"{path}/ws", additional_headers=headers) as ws:
            await asyncio.wait_for(ws.recv(), 30)
            if number % 3 == 0:
                ws.transport.abort()

    for _ in range(5):
        await asyncio.gather(*(visit(number) for number in range(20)))
    for _ in range(200):
        if call("GET", path)["clients"] == 0:
            break
        await asyncio.sleep(0.05)
    assert call("GET", path)["clients"] == 0
    call("DELETE", path)


async def main():
    await shell()
    await terminal()
    await many()


asyncio.run(asyncio.wait_for(main(), 120))
print("ok")
