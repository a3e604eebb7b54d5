"""Vision judges behind OpenAI's chat completions, whose answers are made of what they are shown."""

import base64
import io
import json
import os
import socket
from typing import Literal

import uvicorn
from fastapi import FastAPI, Header, HTTPException
from PIL import Image, ImageStat
from pydantic import BaseModel, ConfigDict

app = FastAPI()


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Url(Strict):
    url: str


class Part(Strict):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: Url | None = None


class Message(Strict):
    role: Literal["user"]
    content: list[Part]


class Body(Strict):
    model: str
    messages: list[Message]
    temperature: float
    max_tokens: int
    response_format: dict | None = None


def check(holds, what):
    if not holds:
        raise HTTPException(422, what)


def read(body, prefix):
    """The pictures and the text, in that order."""
    check(body.temperature == 0 and len(body.messages) == 1, "one message at temperature 0")
    *images, text = body.messages[0].content
    check(text.type == "text" and all(part.type == "image_url" for part in images), "pictures, then text")
    pictures = []
    for part in images:
        check(part.image_url.url.startswith(prefix), part.image_url.url[:40])
        pictures.append(Image.open(io.BytesIO(base64.b64decode(part.image_url.url[len(prefix):], validate=True))))
    return pictures, text.text


def red(picture):
    return ImageStat.Stat(picture.getchannel("R")).mean[0]


def reply(content):
    message = {"role": "assistant", "content": content}
    return {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


@app.post("/score/v1/chat/completions")
def score(body: Body):
    """Resized, as JPEG, with metadata in the text."""
    check(body.model == "judge" and body.max_tokens == 99 and body.response_format is None, "the settings")
    [picture], text = read(body, "data:image/jpeg;base64,")
    check(picture.format == "JPEG" and picture.size == (20, 20), f"{picture.format} {picture.size}")
    if "silent" in text:
        return reply(None)
    if "unsure" in text:
        return reply("I cannot tell.")
    check(text in ("3 of a cat, braces {}", "3 of a dog, braces {}"), text)
    return reply(f"I see {text}.\nRating: {red(picture) / 255 * 10:.2f} out of 10. Rating: 0")


@app.post("/field/v1/chat/completions")
def field(body: Body):
    """The answer is JSON."""
    schema = body.response_format["json_schema"]["schema"]
    check(body.response_format["type"] == "json_schema" and schema["required"] == ["score"], "the schema")
    [picture], text = read(body, "data:image/png;base64,")
    check(picture.format == "PNG" and picture.size == (24, 16), f"{picture.format} {picture.size}")
    return reply('{"score": "high"}' if "dog" in text else json.dumps({"score": red(picture)}))


@app.post("/unified/v1/chat/completions")
def unified(body: Body, authorization: str = Header()):
    check(body.model == "UnifiedReward-7b-v1.5", body.model)
    [picture], text = read(body, "data:image;base64,")
    check(picture.format == "PNG" and picture.size == (512, 512), f"{picture.format} {picture.size}")
    check(text.startswith("<image>\n") and text.endswith("\nText Caption: [a cat]") and "'Final Score:'" in text, text)
    check(authorization == f"Bearer {os.environ['EXPECTED_KEY']}", "the key")
    # Pillow resizes with the same filter: what a resized edge looks like is compared in the first row.
    row = [picture.getpixel((x, 0))[0] for x in range(512)]
    small = Image.new("RGB", (24, 16))
    for x in range(24):
        for y in range(16):
            small.putpixel((x, y), (10 * x, 0, 0))
    expected = small.resize((512, 512))
    most = max(abs(row[x] - expected.getpixel((x, 0))[0]) for x in range(512))
    check(most <= 1, f"resized: {most}")
    return reply(f"1. fine 2. fine\nFinal Score: {1 + red(picture) / 255:.3f}")


@app.post("/compare/v1/chat/completions")
def compare(body: Body):
    """The redder of two is better."""
    pictures, text = read(body, "data:image/png;base64,")
    check(len(pictures) == 2 and text.endswith("Text: a cat"), text)
    if any(picture.getpixel((0, 0))[2] > 200 for picture in pictures):
        return reply("Neither shows anything.")
    first, second = map(red, pictures)
    return reply(f"Better: {'Tie' if first == second else 1 if first > second else 2}")


@app.post("/first/v1/chat/completions")
def first(body: Body):
    """The first of two is better, whatever it is."""
    read(body, "data:image/png;base64,")
    return reply("Better: 1")


listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
