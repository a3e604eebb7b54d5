"""The servers of Flow-GRPO, DDPO and verl-omni, with scores made of what they are sent. What is wrong is answered by status 500."""

import io
import pickle
import traceback

from flask import Flask, request
from PIL import Image, ImageStat, JpegImagePlugin
from werkzeug.serving import WSGIRequestHandler, make_server

app = Flask(__name__)
TAGS = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]


def mean(image, channel):
    """Mean of a channel, in [0, 1]."""
    return ImageStat.Stat(image.getchannel(channel)).mean[0] / 255


def opened(files, quality):
    """The pictures of JPEG files, which are as Pillow writes them at the quality."""
    pictures = []
    for data in files:
        assert type(data) is bytes, type(data)
        picture = Image.open(io.BytesIO(data), formats=["jpeg"])
        again = io.BytesIO()
        picture.convert("RGB").save(again, format="JPEG", **quality)
        expected = Image.open(again)
        assert picture.mode == "RGB", picture.mode
        assert picture.quantization == expected.quantization, picture.quantization
        assert JpegImagePlugin.get_sampling(picture) == 2, "4:2:0 is expected"
        pictures.append(picture)
    return pictures


def geneval(data):
    pictures = opened(data.pop("images"), {})
    records, only_strict = data.pop("meta_datas"), data.pop("only_strict")
    assert not data and type(only_strict) is bool and len(records) == len(pictures)
    for record in records:
        assert type(record["prompt"]) is str and type(record["include"][0]["count"]) is int, record
    strict = [float(record["include"][0]["count"] == 1) for record in records]
    of = lambda tag, scores: [s if record["tag"] == tag else -10.0 for record, s in zip(records, scores)]
    lenient = [0.0 if only_strict else 1.0 for _ in records]
    return {
        # May be negative, and is an int where it is whole.
        "scores": [mean(p, "R") - 1 if r["tag"] != "colors" else -3 for p, r in zip(pictures, records)],
        "rewards": lenient,
        "strict_rewards": strict,
        "group_rewards": {tag: of(tag, lenient) for tag in TAGS},
        "group_strict_rewards": {tag: of(tag, strict) for tag in TAGS},
    }


def deqa(data):
    assert list(data) == ["images"], list(data)
    return {"outputs": [mean(picture, "G") for picture in opened(data["images"], {})]}


def sizes(data):
    """Each picture's score is the number of pictures in its request."""
    return {"outputs": [len(data["images"])] * len(data["images"])}


def scorer(data):
    assert list(data) == ["images", "prompts", "metadata"] and data["metadata"] == {}, list(data)
    pictures = opened(data["images"], {})
    if "fail" in data["prompts"]:
        return {"error": "out of memory"}
    return {"scores": [mean(p, "B") + len(text) for p, text in zip(pictures, data["prompts"])]}


def llava(data):
    pictures = opened(data["images"], {"quality": 80})
    assert len(data["queries"]) == len(data["answers"]) == len(pictures)
    assert all(queries == ["What is there?"] for queries in data["queries"]), data["queries"]
    recall = [[mean(p, "R") + len(text)] for p, [text] in zip(pictures, data["answers"])]
    if len(recall) == 2:
        recall[1] = [0.5, 0.5]
    return {"outputs": [["x"]] * len(pictures), "precision": recall, "recall": recall, "f1": recall}


def view(respond):
    try:
        return pickle.dumps(respond(pickle.loads(request.get_data()))), 200
    except Exception:
        return traceback.format_exc(), 500


# The first stands at the root.
for path, respond in [("", geneval), ("deqa", deqa), ("sizes", sizes), ("scorer", scorer), ("llava", llava)]:
    app.add_url_rule(f"/{path}", path or "root", lambda respond=respond: view(respond), methods=["POST"])

WSGIRequestHandler.log_request = lambda *_: None
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.port, flush=True)
server.serve_forever()
