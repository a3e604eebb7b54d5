"""Flow-Factory's and UniRL's services, with scores made of what they are sent."""

import base64
import io
import socket
import threading
import time

import uvicorn
from fastapi import FastAPI, HTTPException
from PIL import Image, ImageStat
from pydantic import BaseModel

app = FastAPI()
now, peak, lock = 0, 0, threading.Lock()


class Compute(BaseModel):
    prompt: list[str]
    image: list[str] | None
    video: list | None
    condition_images: list | None
    condition_videos: list | None


class Turn(BaseModel):
    text: str
    image_b64: str


class Item(BaseModel):
    history: list[Turn]
    required_rewards: list[str]
    metadata: dict


class Score(BaseModel):
    requests: list[Item]


def mean(text, channel):
    picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["png"])
    return ImageStat.Stat(picture.getchannel(channel)).mean[0]


@app.get("/health")
def health():
    return {"status": "ok"}


@app.get("/loading/health")
def loading():
    raise HTTPException(503, "loading the model")


@app.post("/compute")
def compute(body: Compute):
    if "fail" in body.prompt:
        return {"error": "CUDA out of memory"}
    assert len(body.prompt) == len(body.image) and body.video is None
    return {"rewards": [mean(image, "G") + len(prompt) for prompt, image in zip(body.prompt, body.image)], "error": None}


@app.post("/slow/compute")
def slow(body: Compute):
    """The largest number of requests at a time so far."""
    global now, peak
    with lock:
        now += 1
        peak = max(peak, now)
    time.sleep(0.2)
    with lock:
        now -= 1
        return {"rewards": [peak] * len(body.image)}


@app.post("/score")
def score(body: Score):
    results, errors = [], []
    for item in body.requests:
        [turn], [name] = item.history, item.required_rewards
        result, error = {}, {}
        if turn.text == "slow":
            error[name] = "timed out after 30 s"
        elif turn.text != "nothing":
            result[name] = {"red": mean(turn.image_b64, "R"), "bonus": item.metadata.get("bonus")}
            if name == "one":
                del result[name]["bonus"]
        results.append(result)
        errors.append(error)
    return {"results": results, "errors": errors}


listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
