"""The page in a browser: what is drawn is what the server found, where it found it."""

import base64
import contextlib
import itertools
import json
import shutil
import struct
import subprocess
import urllib.parse
import zlib

import numpy as np
import pytest
from page_case import (
    INK,
    KNOWN,
    ODD,
    PAPER,
    Visit,
    is_near,
    lines_of,
    page_server,
    panoptic_detector,
    photo,
)
from pycocotools import mask as coco_mask
from served_case import tiny_detector

from zoo.contract.segments import png_of_ids
from zoo.pictures.painting import class_colour, dark, light, shade
from zoo.serving import images

pytest.importorskip("fastapi")


def offsets(visit):
    """How far the boxes that are drawn are from where the image has its ink, in pixels of the screen."""
    pixels = visit.pixels()
    height, width = pixels.shape[:2]
    found = []
    for head, _, share in KNOWN:
        if (head, share) not in [(KNOWN[0][0], KNOWN[0][2]), (KNOWN[1][0], KNOWN[1][2])]:
            continue
        x0, y0, x1, y1 = (share * np.array([width, height, width, height])).tolist()
        drawn = lines_of(pixels, share, class_colour(head))
        found += np.abs(np.array(drawn) - [x0, y0, x1, y1]).tolist()
        # the ink is inside, the paper outside: the image was read as the server read it
        margin = 6 * visit.page.evaluate("devicePixelRatio")
        middle = int((y0 + y1) / 2)
        assert is_near(pixels[middle, int(x0 + margin)], INK)
        assert is_near(pixels[middle, int(x0 - margin)], PAPER)
        assert is_near(pixels[int(y1 - margin), int((x0 + x1) / 2)], INK)
        assert is_near(pixels[int(y1 + margin), int((x0 + x1) / 2)], PAPER)
    return found


def test_the_page_asks_no_other_server_and_complains_of_nothing(visit, server):
    visit.upload(photo(400, 300))
    assert visit.boxes() == 3
    assert {urllib.parse.urlsplit(url)._replace(path="", query="").geturl() for url in visit.requests
            if not url.startswith(("data:", "blob:"))} == {server.url}  # fmt: skip
    assert visit.complaints == []


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((400, 300), {}),
        ((400, 300), {"device_scale_factor": 2}),
        ((333, 517), {"device_scale_factor": 1.5}),  # higher than wide
        ((3001, 1501), {}),  # larger than the screen
        ((120, 90), {}),  # enlarged
        ((640, 480), {"viewport": {"width": 390, "height": 800}, "device_scale_factor": 3}),
    ],
)
def test_boxes_are_where_the_objects_are(browser, server, size, options):
    with Visit(browser, server.url, **options) as visit:
        visit.ready().upload(photo(*size))
        assert max(offsets(visit)) <= 1.5 * options.get("device_scale_factor", 1)


def test_boxes_ten_pixels_off_would_be_seen(visit):
    visit.upload(photo(400, 300))
    visit.page.evaluate("document.getElementById('boxes').style.translate = '10px -10px'")
    assert min(offsets(visit)) > 8


def test_photos_that_a_camera_turned_are_upright_with_their_boxes(visit):
    for orientation in range(1, 9):
        visit.upload(photo(400, 240, "JPEG", orientation), "turned.jpg")
        assert max(offsets(visit)) <= 1.5, orientation
    assert visit.page.get_attribute("#image", "src").startswith("blob:")  # the browser turned it by itself


def test_tags_that_not_every_browser_heeds_turn_the_image_too(visit):
    for kind, orientation, tag in [
        ("WEBP", 3, "exif"),
        ("WEBP", 6, "exif"),
        ("PNG", 2, "exif"),
        ("JPEG", 3, "xmp"),
    ]:
        visit.upload(photo(400, 240, kind, orientation, tag), "turned")
        assert max(offsets(visit)) <= 1.5, kind
        assert visit.page.get_attribute("#image", "src").startswith("data:image/jpeg")
    assert visit.asked() == 4


def test_an_image_that_the_browser_cannot_read_comes_from_the_server(visit):
    visit.upload(photo(400, 240, "TIFF"), "scan.tif")
    assert max(offsets(visit)) <= 1.5
    assert visit.asked() == 1


def test_an_address_is_read_by_the_server_which_sends_its_image(visit, monkeypatch):
    monkeypatch.setattr(images, "fetch", lambda address, **limits: photo(2400, 1800, "JPEG", 6))
    visit.page.fill("#url", "example.org/a b.jpg?x='1'")
    visit.page.press("#url", "Enter")
    visit.page.locator("#rows tr").first.wait_for()
    assert max(offsets(visit)) <= 1.5
    line = visit.page.inner_text("#curl-line")
    assert """-d '{"image":"https://example.org/a b.jpg?x='"'"'1'"'"'","model":"known"}'""" in line


def test_an_image_that_the_browser_turns_in_another_way_is_taken_from_the_server(visit):
    # a browser that knows no EXIF shows the stored image, whose size differs from the server's
    visit.page.evaluate("""() => {
      const width = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, "naturalWidth").get
      const get = function () { return width.call(this) + (this.src.startsWith("blob:") ? 7 : 0) }
      Object.defineProperty(HTMLImageElement.prototype, "naturalWidth", { get })
    }""")
    visit.upload(photo(400, 240))
    assert visit.page.get_attribute("#image", "src").startswith("data:image/jpeg")
    assert max(offsets(visit)) <= 1.5


def test_the_slider_and_the_classes_change_what_is_drawn_without_a_request(visit):
    visit.upload(photo(400, 300))
    page, asked = visit.page, len(visit.requests)
    assert page.inner_text("#threshold-value") == "0.5"  # stored with the model; `no` has another
    assert [row[0] for row in visit.table()] == ["disc", ODD, "no"]
    page.fill("#threshold", "0.4")
    assert [row[1] for row in visit.table()] == ["0.900", "0.600", "0.450"]
    assert visit.boxes() == 3
    page.fill("#threshold", "0")
    assert visit.boxes() == 5
    page.locator(".chip", has_text="odd").click()
    assert [row[0] for row in visit.table()] == [ODD, ODD]
    page.locator(".chip", has_text="disc").click()
    assert visit.boxes() == 4
    page.click("#all-classes")
    assert visit.boxes() == 5
    page.fill("#threshold", "0.95")
    assert visit.boxes() == 0
    assert page.inner_text("#status") == "No object is shown; the best score is 0.90"
    page.click("#own")
    assert visit.boxes() == 3
    assert len(visit.requests) == asked


def test_the_table_has_what_zoo_predict_finds(visit):
    visit.choose("tiny")
    content = photo(320, 200)
    visit.upload(content)
    visit.page.fill("#threshold", "0")
    found = tiny_detector().predict(content, 0)
    rows = zip(found.labels, found.scores, found.boxes_xyxy, strict=True)
    assert visit.table() == [
        [label, f"{score:.3f}", ", ".join(f"{value:.0f}" for value in box)] for label, score, box in rows
    ]


def assert_apart(visit):
    """No name that is seen lies on another, or beyond the image."""
    frame = visit.page.locator("#image").bounding_box()
    places = [name.bounding_box() for name in visit.page.locator("#names span:visible").all()]
    for at, one in enumerate(places):
        assert frame["x"] - 1 <= one["x"]
        assert one["x"] + one["width"] <= frame["x"] + frame["width"] + 1
        for other in places[at + 1 :]:
            apart = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
            assert apart or one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]


def test_names_have_the_scores(visit):
    visit.upload(photo(400, 300))
    visit.page.fill("#threshold", "0")
    shown = visit.page.locator("#names span:visible").all_inner_texts()
    assert set(shown) == {f"{['disc', ODD, 'no'][head]} {score:.2f}" for head, score, _ in KNOWN}
    assert_apart(visit)


def test_in_a_crowd_names_without_room_are_left_out_and_shown_when_marked(visit):
    def crowd(route):
        answer = route.fetch()
        found = answer.json()
        first = found["detections"][0]
        places = [[x, y, x + 60, y + 40] for x in range(0, 320, 40) for y in range(0, 240, 30)]
        found["detections"] = [{**first, "box_xyxy": place} for place in places]
        route.fulfill(response=answer, json=found)

    visit.page.route("**/v1/detect", crowd)
    visit.upload(photo(400, 300))
    seen = visit.page.locator("#names span:visible")
    first = seen.count()
    assert 5 < first < 64
    assert_apart(visit)
    for number in (9, 40):
        visit.page.locator("#rows tr").nth(number).focus()
        assert [seen.count(), seen.first.get_attribute("data-number")] == [1, str(number)]
        visit.page.locator("#rows tr:focus").blur()
        assert seen.count() == first
        assert_apart(visit)
    visit.page.set_viewport_size({"width": 400, "height": 700})  # names are placed anew
    visit.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert 2 < seen.count() < first
    assert_apart(visit)
    visit.page.set_viewport_size({"width": 1280, "height": 900})


def test_colours_are_those_of_the_pictures_that_zoo_predict_paints(visit):
    found = visit.page.evaluate("""async () => {
      const { classColour, dark, light, shade } = await import("/page/colours.js")
      const all = (own, head) => [own, dark(own), light(own), shade(own, head)]
      return [...Array(100).keys()].map((head) => all(classColour(head), head))
    }""")
    for head, colours in enumerate(found):
        own = class_colour(head)
        expected = [own, dark(own), light(own), shade(own, head)]
        assert np.abs(np.array(colours) - np.array(expected)).max() <= 1, head


def test_segments_cover_their_pixels_in_their_colours(visit):
    content = photo(400, 300)
    found = panoptic_detector().predict(content)
    visit.choose("panoptic")
    visit.upload(content)
    shares = {
        found.label_map.name_of_head[s.label]: f"{s.area / 1200:.1f} %" for s in found.panoptic.segments
    }
    assert {row[0]: row[2] for row in visit.table()} == shares
    visit.page.fill("#threshold", "0.89")  # hides the sky, 0.88
    assert [row[0] for row in visit.table()] == ["cat", "dog"]
    ids, image, painted = found.panoptic.ids.numpy(), np.full((300, 400, 3), PAPER), visit.pixels()
    for _, _, (x0, y0, x1, y1) in KNOWN:
        image[round(y0 * 300) : round(y1 * 300), round(x0 * 400) : round(x1 * 400)] = INK
    colours = {
        s.id: found.label_map.color_of_head[s.label] for s in found.panoptic.segments if s.score > 0.89
    }
    compared = set()
    for y in range(10, 300, 20):
        for x in range(10, 400, 20):
            near = (slice(y - 4, y + 5), slice(x - 4, x + 5))
            if len(np.unique(ids[near])) > 1 or len(np.unique(image[near].reshape(-1, 3), axis=0)) > 1:
                continue  # an outline
            number = int(ids[y, x])
            under, over = image[y, x], colours.get(number)
            expected = under if over is None else under + (np.array(over) - under) * 115 / 255
            drawn = painted[int((y + 0.5) * len(painted) / 300), int((x + 0.5) * painted.shape[1] / 400)]
            assert np.abs(drawn - expected).max() <= 8, (x, y, number)
            compared.add(number)
    assert compared == {0, *(s.id for s in found.panoptic.segments)}


def test_segments_are_of_the_models_rule_and_objects_beside_them(visit):
    visit.choose("panoptic")
    visit.upload(photo(400, 300))
    assert visit.page.get_attribute("#threshold", "min") == "0.85"
    assert "0.85" in visit.page.inner_text("#threshold-note")
    assert visit.boxes() == 0
    asked = len(visit.requests)
    visit.page.locator("label", has_text="Objects").click()
    assert [row[0] for row in visit.table()] == ["cat", "dog", "sky-other-merged", "grass-merged"]
    assert visit.boxes() == 4
    assert len(visit.requests) == asked


def test_masks_are_decoded_as_pycocotools_does(visit):
    generator = np.random.default_rng(0)
    sizes, masks, given = [(1, 1), (7, 5), (40, 60), (200, 150)], [], []
    for (height, width), density in itertools.product(sizes, (0, 0.03, 0.5, 1)):
        mask = generator.random((height, width)) < density
        mask[height // 3 : height // 2 + 1, width // 3 :] = True
        masks.append(mask)
        counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        given.append({"size": [height, width], "counts": counts.decode()})
    decoded = visit.page.evaluate(
        """async (masks) => {
          const { gridOf, ownersByMasks } = await import("/page/masks.js")
          return masks.map((mask) => ownersByMasks([{ number: 0, mask }], gridOf(mask.size[1], mask.size[0])).join(""))
        }""",
        given,
    )
    for mask, owners in zip(masks, decoded, strict=True):
        assert owners == "".join(map(str, mask.T.astype(int).ravel()))


def png_by_hand(samples):
    """A PNG of [h, w, 3] whose lines have its five filters in turn (specification, section 9)."""
    height, width = samples.shape[:2]
    around = np.zeros((height + 1, width + 1, 3), int)
    around[1:, 1:] = samples
    left, above, corner = around[1:, :-1], around[:-1, 1:], around[:-1, :-1]
    guess = left + above - corner
    a, b, c = (np.abs(guess - one) for one in (left, above, corner))
    paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
    predicted = [np.zeros_like(left), left, above, (left + above) // 2, paeth]
    lines = (
        bytes([y % 5]) + (samples[y] - predicted[y % 5][y]).astype(np.uint8).tobytes() for y in range(height)
    )
    data = zlib.compress(b"".join(lines))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", data[:50]),
        (b"IDAT", data[50:]),
    ]
    packed = (
        struct.pack(">I", len(part)) + name + part + bytes(4) for name, part in [*chunks, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_ids_of_segments_are_read_as_they_were_written(visit):
    generator = np.random.default_rng(0)
    maps = [
        generator.integers(0, high, size) for high, size in [(256**3, (40, 61)), (5, (7, 1)), (300, (1, 90))]
    ]
    pngs = [png_of_ids(ids) for ids in maps]
    maps.append(generator.integers(0, 256**3, (33, 20)))
    pngs.append(png_by_hand(np.stack([maps[-1] >> shift & 255 for shift in (0, 8, 16)], axis=-1)))
    read = visit.page.evaluate(
        """async (given) => {
          const { idsOf } = await import("/page/masks.js")
          return Promise.all(given.map(async ([png, width, height]) => [...await idsOf(png, { width, height })]))
        }""",
        [[base64.b64encode(png).decode(), *ids.shape[::-1]] for ids, png in zip(maps, pngs, strict=True)],
    )
    for ids, found in zip(maps, read, strict=True):
        assert found == ids.T.ravel().tolist()


def test_a_large_mask_is_sampled_where_its_pixels_are(visit):
    mask = np.zeros((2000, 4000), np.uint8)
    mask[500:1500, 1000:3000] = 1
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    area, grid = visit.page.evaluate(
        """async (mask) => {
          const { gridOf, ownersByMasks } = await import("/page/masks.js")
          const grid = gridOf(mask.size[1], mask.size[0]), owners = ownersByMasks([{ number: 0, mask }], grid)
          return [owners.reduce((sum, owner) => sum + owner, 0), [grid.width, grid.height]]
        }""",
        {"size": [2000, 4000], "counts": counts},
    )
    assert grid == [1600, 800]
    assert area == 800 * 400


# what the page asks, copied into a shell
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_curl_line_gives_what_is_shown(visit, tmp_path):
    content = photo(200, 100)
    odd = visit.page.locator(".chip", has_text="odd")
    changes = [lambda: None, lambda: visit.page.fill("#threshold", "0.4"), odd.click, lambda: None]
    names = [
        "photo.png",
        "it's.png",
        "-",
        " $(touch x) `y` ",
        "a;b.png",
        "c,d.png",
        'e".png',
        "f\\g.png",
        '"h".png',
    ]
    for name, change in zip(names, itertools.cycle(changes), strict=False):
        (tmp_path / name).write_bytes(content)
        visit.upload(content, name)
        change()
        line = visit.page.inner_text("#curl-line")
        answer = subprocess.run(
            ["bash", "-c", line], capture_output=True, cwd=tmp_path, check=True, timeout=20
        )
        found = [[one["label"], f"{one['score']:.3f}"] for one in json.loads(answer.stdout)["detections"]]
        assert found == [row[:2] for row in visit.table()]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {*names}


def test_a_key_is_asked_for_used_and_not_written_down(browser):
    with page_server(keys=("secret-key-1",)) as locked, Visit(browser, locked.url) as visit:
        page = visit.page
        page.locator("#key").wait_for()
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.locator("text=That key is not known here").wait_for()
        page.fill("#key", "secret-key-1")
        page.press("#key", "Enter")
        visit.ready().upload(photo(200, 100))
        assert visit.boxes() == 3
        assert page.inner_text("#curl-line").splitlines()[1] == '  -H "Authorization: Bearer $ZOO_API_KEY" \\'
        assert "secret-key-1" not in page.content()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_an_image_that_cannot_be_used_is_told_in_words(visit):
    for content, words in {
        b"no image": "The file is no image that is read; JPEG, PNG",
        b"": "The image is empty: it has 0 bytes, as a folder",
        photo(400, 300)[:300]: "The file is damaged",
        photo(4000, 2000): "The image has 4000x2000 pixels; at most 5000000 are read.",
    }.items():
        visit.upload(content)
        assert visit.page.inner_text("#problem-title") == "This image cannot be used"
        assert words in visit.page.inner_text("#problem-detail")
        assert not visit.page.locator("#results").is_visible()
        assert not visit.page.locator("#again").is_visible()  # it would not help
    visit.upload(photo(200, 100))
    assert not visit.page.locator("#problem").is_visible()
    assert visit.boxes() == 3


def test_after_a_failure_nobody_hears_that_it_is_still_being_detected(visit):
    visit.upload(photo(200, 100))
    visit.page.locator("#live", has_text="objects of").wait_for(state="attached")
    visit.upload(b"no image")
    visit.page.locator("#live:empty").wait_for(state="attached", timeout=5000)


def test_arrays_are_offered_where_the_model_reads_more_than_rgb(visit):
    def answer(route):
        cards = route.fetch().json()
        cards["data"][1]["input"]["channels"] = 4
        cards["data"][2]["input"]["scale"] = [[0, 4000]] * 3
        route.fulfill(json=cards)

    visit.page.route("**/v1/models", answer)
    visit.page.reload()
    visit.ready()
    offered = {}
    for model in ("panoptic", "tiny", "known"):
        visit.choose(model)
        offered[model] = ".npy" in visit.page.get_attribute("#file", "accept")
    assert offered == {"panoptic": True, "tiny": True, "known": False}


def test_after_a_failure_the_same_can_be_tried_again(visit):
    busy = {"status": 429, "headers": {"Retry-After": "7"}, "body": '{"detail": "9 requests wait"}'}
    for failing, title, words in [
        (lambda route: route.abort(), "The server does not answer", "It may have been stopped"),
        (lambda route: route.fulfill(status=502, body="<html>"), "The server has failed", "status 502"),
        (
            lambda route: route.fulfill(**busy),
            "The server is busy",
            "9 requests wait. Wait 7 s and try again.",
        ),
    ]:
        visit.page.route("**/v1/detect", failing)
        visit.upload(photo(200, 100))
        assert visit.page.inner_text("#problem-title") == title
        assert words in visit.page.inner_text("#problem-detail")
        visit.page.unroute("**/v1/detect")
    visit.page.click("#again")
    visit.page.locator("#rows tr").first.wait_for()
    assert visit.boxes() == 3


def test_a_server_that_is_down_at_first_is_asked_again(visit):
    visit.page.route("**/v1/models", lambda route: route.abort())
    visit.page.reload()
    visit.page.locator("#problem").wait_for()
    visit.page.unroute("**/v1/models")
    visit.page.click("#again")
    visit.ready().upload(photo(200, 100))
    assert visit.boxes() == 3


def test_an_answer_that_comes_late_is_not_shown_for_another_image(visit):
    held = []
    visit.page.route("**/v1/detect", lambda route: held.append(route))
    for number, size in enumerate([(400, 200), (200, 200)], 1):
        image = {"name": f"{number}.png", "mimeType": "image/png", "buffer": photo(*size)}
        with visit.page.expect_request("**/v1/detect"):
            visit.page.set_input_files("#file", image)
    while len(held) < 2:  # the handler is told after the request
        visit.page.wait_for_timeout(10)
    assert visit.page.get_attribute("#stage", "aria-busy") == "true"
    answer = held[1].fetch()
    held[1].fulfill(response=answer)
    visit.page.locator("#rows tr").first.wait_for()
    with contextlib.suppress(Exception):  # the page has given it up
        held[0].fulfill(response=answer)
    visit.page.wait_for_timeout(500)
    assert visit.page.get_attribute("#image", "alt") == "The image 2.png"
    assert "2.png" in visit.page.inner_text("#curl-line")


def test_an_image_is_pasted_or_dropped(visit):
    give = """([kind, bytes]) => {
      const data = new DataTransfer()
      data.items.add(new File([Uint8Array.from(bytes)], "given.png", { type: "image/png" }))
      const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
        : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
      document.getElementById("stage").dispatchEvent(event)
    }"""
    for number, kind in enumerate(("paste", "drop"), 1):
        visit.page.evaluate(give, [kind, list(photo(200, 100 * number))])
        visit.page.locator(f"#boxes[viewBox='0 0 200 {100 * number}']").wait_for()
        visit.settled()
        assert visit.boxes() == 3


def test_the_card_tells_of_the_model(visit, server):
    card = server.service.models["known"].card
    text = visit.page.inner_text("#card")
    for words in (card["hash"], "64 × 64 pixels", "pytorch", "Label map: 3 classes", "No score is published"):
        assert words in text
    visit.page.click("summary")
    assert f"disc, {ODD}, no" in visit.page.inner_text("#card")


def test_the_card_has_published_and_measured_scores_with_their_interval(browser, server, monkeypatch):
    card = server.service.models["known"].card
    monkeypatch.setitem(card, "scores", {
        "published": {"unit": "percent", "dataset": "COCO val2017", "AP": 23.8, "AP50": None},
        "measured": [{
            "unit": "fraction", "dataset": "COCO", "split": "val", "AP": 0.2573, "APs": -1.0,
            "interval": {"AP": [0.2411, 0.2739], "APs": [None, None]},
        }],
    })  # fmt: skip
    with Visit(browser, server.url) as visit:
        rows = [
            row.locator("th, td").all_inner_texts() for row in visit.ready().page.locator(".scores tr").all()
        ]
    assert [" ".join(cell.split()) for cell in rows[0]] == [
        "Score",
        "Published COCO val2017",
        "Measured COCO val",
    ]
    assert rows[1:] == [["AP", "0.238", "0.257 [0.241, 0.274]"], ["AP, small", "–", "–"]]
