"""The page in a real browser: what it shows is what torch computes of the same noise."""

import pytest
import torch
from served import SD, SEED, assert_shows, finished, level, look_at, noise, pixels, text

import scm
from scm.method import samplers, trigflow

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def student():
    return scm.load("mnist_dmd", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def teacher():
    return scm.load("mnist_teacher", device="cpu", precision="fp32")


def test_a_key_makes_new_noise_a_digit(page, student):
    for seed in (SEED, SEED + 1):
        z = noise(page, seed)
        assert_shows(page, "one-noise", z(0))
        assert_shows(page, "one-digit", student.sampler_with(1)(student.net, z, None))
        assert text(page, "one-seed") == f"seed {seed}"
        assert text(page, "one-time").startswith("one network call, ")
        assert f"seed {seed}: one network call" in text(page, "spoken")
        page.press("Enter")
        page.until(f"document.getElementById('spoken').textContent.includes('{seed + 1}:')")


def test_one_two_and_35_calls_of_one_noise(page, student, teacher):
    look_at(page, "ways")
    z = noise(page, SEED)
    assert_shows(page, "ways-noise", z(0))
    assert_shows(page, "ways-one", student.sampler_with(1)(student.net, z, None))
    assert_shows(page, "ways-two", student.sampler_with(2)(student.net, z, None))
    heun = samplers.Heun(steps=18, sigma_data=SD)
    assert_shows(page, "ways-teacher", heun(teacher.net, z, None))
    for id_, calls in (("one", "1 call, "), ("two", "2 calls, "), ("teacher", "35 calls, ")):
        assert text(page, f"ways-{id_}-time").startswith(calls)
    assert text(page, "ways-seed") == f"seed {SEED}"


def test_a_slider_moves_the_noise_level(page, student, teacher):
    look_at(page, "level")
    z = noise(page, SEED)
    x0 = student.sampler_with(2)(student.net, z, None)
    assert_shows(page, "level-digit", x0)
    page.js("document.getElementById('level-t').focus()")
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):
        page.press(key)
        finished(page, "level")
        t = level(page, "level")
        assert f"t = {t:.2f}, σ = {SD * t.tan():.2f}" == text(page, "level-text")
        x_t = trigflow.interpolate(x0, z(2), t.view(1))
        assert_shows(page, "level-noised", x_t)
        assert_shows(page, "level-ended", student.denoise(x_t, t))
        assert_shows(page, "level-mean", teacher.denoise(x_t, t))


def test_a_row_between_two_noises(page, student):
    look_at(page, "between")
    one = student.sampler_with(1)
    assert_shows(page, "between-0", one(student.net, noise(page, SEED), None))
    assert_shows(page, "between-7", one(student.net, noise(page, SEED + 1), None))
    shown = torch.stack([pixels(page, f"between-{i}") for i in range(8)])
    assert text(page, "between-time").startswith("8 digits in one call, ")
    assert (shown[1:] - shown[:-1]).abs().mean(dim=(1, 2)).min() > 1
    assert shown.amax(dim=(1, 2)).min() > 200 and shown.median() < 20  # ink on a ground


def test_a_drawing_is_repaired(page, student):
    look_at(page, "repair")
    page.js("document.getElementById('repair-clear').click()")
    finished(page, "repair")
    assert pixels(page, "repair-drawing").max() == 0
    box = page.js(
        "(({x, y, width}) => [x, y, width])"
        "(document.getElementById('repair-drawing').getBoundingClientRect())"
    )
    x, y, width = box
    page.drag(*((x + width * 0.5, y + width * part) for part in (0.25, 0.5, 0.75)))
    finished(page, "repair")
    drawn = pixels(page, "repair-drawing")
    assert drawn[8:20, 13:15].min() > 200 and drawn[:, :10].max() == 0  # an upright line
    t, x0 = level(page, "repair"), drawn.view(1, 1, 28, 28) / 255 - 0.5
    x_t = trigflow.interpolate(x0, noise(page, SEED)(0), t.view(1))
    assert_shows(page, "repair-noised", x_t)
    assert_shows(page, "repair-repaired", student.denoise(x_t, t))
    page.js("document.getElementById('repair-strokes').focus()")
    page.press("ArrowDown")  # without a mouse: a stroke that is there
    page.until("document.getElementById('spoken').textContent.startsWith('Repaired a ')")
    assert pixels(page, "repair-drawing")[:, :12].max() > 200
