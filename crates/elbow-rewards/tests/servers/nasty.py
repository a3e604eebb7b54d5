"""A server that misbehaves as the first part of the path says. `GET /count/NAME` says how often NAME was asked."""

import os
import pickle
import socket
import threading
import time

counts, lock = {}, threading.Lock()


class Call:
    """What a pickle of this does when Python loads it is a call."""

    def __reduce__(self):
        return os.getpid, ()


BODIES = {
    "malformed": b'{"rewards": [1.0, 2',
    "html": b"<html>Welcome to nginx!</html>",
    "empty": b"",
    "other": b'{"scores": [1.0, 2.0]}',
    "few": b'{"rewards": [1.0]}',
    "many": b'{"rewards": [1.0, 2.0, 3.0]}',
    "odd": b'{"rewards": [NaN, null]}',
    "odder": b'{"rewards": ["0.5", true]}',
    "good-and-bad": b'{"rewards": [0.25, Infinity]}',
    "binary": bytes(range(256)),
    "pickle-truncated": pickle.dumps({"outputs": [1.0, 2.0]})[:-6],
    "pickle-call": pickle.dumps({"outputs": [1.0, Call()]}),
    "pickle-few": pickle.dumps({"outputs": [1.0]}),
    "pickle-many": pickle.dumps({"outputs": [1.0, 2.0, 3.0]}),
    "pickle-odd": pickle.dumps({"outputs": [float("nan"), None]}),
    "pickle-odder": pickle.dumps({"outputs": ["0.5", True]}),
    "pickle-good-and-bad": pickle.dumps({"outputs": [0.25, float("-inf")]}),
    "pickle-other": pickle.dumps({"scores": [1.0, 2.0]}),
    "pickle-no-list": pickle.dumps({"outputs": 1.0}),
    "pickle-no-dict": pickle.dumps([1.0, 2.0]),
}


def answer(status, body, length=None, more=""):
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}\r\n".encode() + body


def request(connection):
    """The path and the head of a request, once all of it is there."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, body = data.split(b"\r\n\r\n", 1)
    length = 0
    for line in head.decode().lower().split("\r\n"):
        if line.startswith("content-length:"):
            length = int(line.split(":")[1])
    while len(body) < length:
        body += connection.recv(65536)
    return head.decode().split(" ")[1], head.decode()


def respond(connection):
    path, head = request(connection)
    _, name, *rest = path.split("/")
    if name == "count":
        connection.sendall(answer("200 OK", str(counts.get(rest[0], 0)).encode()))
        return
    with lock:
        counts[name] = count = counts.get(name, 0) + 1
    if name == "flaky":
        broken = count <= 2
        connection.sendall(answer("500 Oh", b"not yet") if broken else answer("200 OK", b'{"rewards": [1.5, 2.5]}'))
    elif name == "broken":
        connection.sendall(answer("500 Oh", b"Traceback: " + b"x" * 5000))
    elif name == "missing":
        connection.sendall(answer("404 Not Found", b"nothing here"))
    elif name == "busy":
        connection.sendall(answer("429 Too Many Requests", b"later", more="Retry-After: 0\r\n"))
    elif name == "moved":
        connection.sendall(answer("307 Temporary Redirect", b"", more="Location: /good-and-bad/compute\r\n"))
    elif name == "half":
        connection.sendall(answer("200 OK", b'{"rewards": [1.0,', length=24))
    elif name == "long":
        connection.sendall(answer("200 OK", b'{"rewards": [1.0, 2.0]}', length=1000))
        time.sleep(3)
    elif name == "short":
        connection.sendall(answer("200 OK", b'{"rewards": [1.0, 2.0]}', length=17))
    elif name == "slow":
        time.sleep(3)
        connection.sendall(answer("200 OK", b'{"rewards": [1.0, 2.0]}'))
    elif name == "drip":
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(60):
            connection.sendall(b" ")
            time.sleep(0.05)
    elif name == "endless":
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" " * 65536)
    elif name == "banana":
        connection.sendall(b"banana\r\n\r\n")
    elif name == "hangup":
        pass
    elif name == "key":
        key = [line for line in head.split("\r\n") if line.lower().startswith("authorization:")]
        connection.sendall(answer("401 Unauthorized", f"bad {key[0]}".encode()))
    elif name == "key-echo":
        key = [line for line in head.split("\r\n") if line.lower().startswith("authorization:")]
        connection.sendall(answer("200 OK", f'{{"error": "bad {key[0]}"}}'.encode()))
    else:
        connection.sendall(answer("200 OK", BODIES[name]))


def serve(connection):
    try:
        respond(connection)
    except OSError:
        pass
    finally:
        connection.close()


listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(64)
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
