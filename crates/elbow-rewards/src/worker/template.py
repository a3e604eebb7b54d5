"""A reward of your own. A recipe uses it by

    [reward]
    kind = "python"
    file = "my_reward.py"

It runs in a process of its own, which is killed and started again when it crashes or hangs.
What it prints goes to the run's log.
"""

from PIL import ImageStat


def score(images, prompts, metadata):
    """One entry a picture; higher is better.

    images    PIL images in RGB. They are copies: keep or change them as you like.
    prompts   The text of each picture's prompt.
    metadata  A dict a picture: every other key of its line in a .jsonl file of prompts.

    An entry is a number, a dict of named numbers (their sum is the reward; `reward.weights` says how much each counts),
    or None where there is no score: the picture is then left out, never taken for 0.
    """
    return [redness(image) for image in images]


def redness(image):
    """How much redder than green and blue the picture is on average, from -1 to 1."""
    red, green, blue = ImageStat.Stat(image).mean
    return (red - (green + blue) / 2) / 255


# Called once before the first picture, and again after a crash. `device` is the recipe's `reward.device`.
#
# def setup(device):
#     global model
#     model = load_my_model().to(device)
#
# Called around the training step, for a model that shares an accelerator with the policy.
#
# def sleep():
#     model.to("cpu")
#
# def wake():
#     model.to("cuda")
