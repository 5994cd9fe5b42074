"""The page by keyboard, by screen reader, in the dark, and on a phone."""

import numpy as np
import pytest
from page_case import ODD, Visit, photo

pytest.importorskip("fastapi")

# of every visible text: its colour, and what lies behind it
TEXTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number)
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(element).backgroundColor)
      if (a === 1) return [r, g, b]
    }
    return [255, 255, 255]
  }
  const seen = { visibilityProperty: true, opacityProperty: true }
  const found = []
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("")
    if (!text || !element.checkVisibility(seen) || element.closest(".unseen")) continue
    found.push([text, numbers(getComputedStyle(element).color).slice(0, 3), behind(element)])
  }
  return found
}"""
# what a keyboard is on: its id or name, and whether that can be seen, on itself or on what stands for it
FOCUS = """() => {
  const element = document.activeElement
  if (!element || element === document.body) return null
  const shown = element.classList.contains("unseen") ? element.nextElementSibling : element
  const { outlineStyle, outlineWidth } = getComputedStyle(shown)
  const name = element.id || element.value || element.closest("tr")?.innerText || element.tagName
  return [name, outlineStyle !== "none" && parseFloat(outlineWidth) >= 2]
}"""
# what has no name that a screen reader could say
UNNAMED = """[...document.querySelectorAll("button, input, select")]
  .filter((one) => !one.labels?.length && !one.innerText.trim()).length"""
SMALL = """[...document.querySelectorAll("button:not(.link), select, .button, #url, .chip")]
  .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 24).map((one) => one.outerHTML)"""


def luminance(colour):
    channels = np.array(colour) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    """Of WCAG 2: from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def walk(page, key="Tab"):
    """What the keyboard comes to, until it leaves the page."""
    stops = []
    while len(stops) < 60:
        page.keyboard.press(key)
        stop = page.evaluate(FOCUS)
        if stop is None or stop in stops:
            break
        stops.append(stop)
    return stops


def test_a_keyboard_reaches_everything_in_order_and_shows_where_it_is(visit):
    visit.upload(photo(400, 300))
    visit.page.fill("#threshold", "0.05")  # brings the way back to the model's own, and a second disc
    visit.page.locator(".chip", has_text="disc").click()
    visit.page.evaluate("document.activeElement.blur(); getSelection().removeAllRanges()")
    visit.page.locator("h1").click()
    stops = walk(visit.page)
    names = [name for name, _ in stops]
    assert names[:4] == ["model", "file", "url", "BUTTON"]
    assert names[4:6] == ["threshold", "own"]
    assert names[6:10] == ["all-classes", "disc", ODD, "no"]
    assert names[10].split() == [
        "disc",
        "0.900",
        "20,",
        "30,",
        "80,",
        "180",
    ]  # one stop of the table's two rows
    assert names[11:] == ["copy", "PRE", "SUMMARY"]
    assert all(seen for _, seen in stops), stops


def test_everything_is_done_without_a_mouse(visit):
    page = visit.page
    page.focus("#model")
    page.keyboard.press("ArrowDown")  # the panoptic model
    page.keyboard.press("ArrowUp")
    with page.expect_file_chooser() as chooser:
        page.focus("#file")
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "p.png", "mimeType": "image/png", "buffer": photo(400, 300)})
    page.locator("#rows tr").first.wait_for()
    page.focus("#threshold")
    page.keyboard.press("Home")
    assert visit.boxes() == 5
    page.focus("#class-chips input[value='disc']")
    page.keyboard.press("Space")
    assert visit.boxes() == 2
    assert page.evaluate("document.activeElement.value") == "disc"
    page.focus("#all-classes")
    page.keyboard.press("Enter")
    assert visit.boxes() == 5
    assert page.evaluate("document.activeElement.type") == "checkbox"  # not lost with the button that went


def test_arrows_move_between_rows_and_mark_the_box(visit):
    visit.upload(photo(400, 300))
    page = visit.page
    page.focus("#rows tr")
    marked = lambda: [one.get_attribute("data-number") for one in page.locator("#boxes .strong").all()]  # noqa: E731
    first = marked()
    assert len(first) == 1
    page.keyboard.press("ArrowDown")
    assert marked() != first
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.innerText").startswith("no")
    assert page.locator("#rows tr.strong").count() == 1
    page.keyboard.press("Tab")
    assert marked() == []


def test_a_pointer_on_the_image_marks_the_row(visit):
    visit.upload(photo(400, 300))
    frame = visit.page.locator("#image").bounding_box()
    visit.page.mouse.move(frame["x"] + 0.75 * frame["width"], frame["y"] + 0.5 * frame["height"])
    assert visit.page.locator("#rows tr.strong th").inner_text() == ODD
    visit.page.mouse.move(frame["x"] + 0.5 * frame["width"], frame["y"] + 0.95 * frame["height"])
    assert visit.page.locator("#rows tr.strong").count() == 0
    visit.page.locator("#rows tr").first.hover()
    assert visit.page.locator("#boxes .strong").count() == 1


def test_a_screen_reader_is_told_what_things_are(visit):
    visit.upload(photo(400, 300))
    read = visit.page.locator("body").aria_snapshot()
    for part in (
        'heading "detr-zoo" [level=1]', 'combobox "Model"', 'button "Choose an image"', 'textbox "Address of an image"',
        'img "The image photo.png"', 'heading "Detections" [level=2]', 'slider "Threshold"', 'group "Classes"',
        'checkbox "disc 1"', "table", "columnheader", 'rowheader "disc"', 'cell "0.900"',
        'heading "The same by curl" [level=2]', 'button "Copy"', 'heading "known" [level=2]',
    ):  # fmt: skip
        assert part in read, part
    assert visit.page.evaluate(UNNAMED) == 0
    facts = visit.page.evaluate("""() => {
      const ids = [...document.querySelectorAll("[id]")].map((one) => one.id)
      const named = [...document.querySelectorAll("[aria-labelledby], [aria-describedby], label[for]")]
        .flatMap((one) => [one.getAttribute("aria-labelledby"), one.getAttribute("aria-describedby"), one.htmlFor])
      return {
        language: document.documentElement.lang,
        title: document.title,
        twice: ids.filter((id, at) => ids.indexOf(id) !== at),
        missing: named.filter((id) => id && !ids.includes(id)),
        ahead: document.querySelectorAll("[tabindex]:not([tabindex='0'], [tabindex='-1'])").length,
      }
    }""")
    assert facts == {"language": "en", "title": "known · detr-zoo", "twice": [], "missing": [], "ahead": 0}


def test_a_screen_reader_hears_what_happens(visit):
    live = visit.page.locator("#live[role=status]")
    visit.upload(photo(400, 300))
    live.filter(has_text="3 objects of 3 classes").wait_for(state="attached")
    visit.page.fill("#threshold", "0.55")
    live.filter(has_text="2 objects of 2 classes").wait_for(state="attached")
    visit.upload(b"no image")
    assert "no image" in visit.page.locator("[role=alert]").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_read_easily(browser, server, scheme):
    with Visit(browser, server.url, color_scheme=scheme) as visit:
        visit.ready().upload(b"no image")
        texts = visit.page.evaluate(TEXTS)
        visit.choose("panoptic")
        visit.upload(photo(400, 300))
        visit.page.locator(".chip", has_text="cat").click()
        texts += visit.page.evaluate(TEXTS)
        visit.choose("known")
        visit.page.locator("#boxes .line").first.wait_for()
        visit.page.fill("#threshold", "0")
        visit.page.focus("#rows tr")
        texts += visit.page.evaluate(TEXTS)
        paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert len(texts) > 60
    poor = {(text, round(contrast(ink, back), 2)) for text, ink, back in texts if contrast(ink, back) < 4.5}
    assert not poor
    shade = luminance([float(v) for v in paper[4:-1].split(",")])
    assert shade > 0.8 if scheme == "light" else shade < 0.05


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(browser, server, width):
    with Visit(browser, server.url, viewport={"width": width, "height": 800}) as visit:
        page = visit.ready().page
        too_wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(too_wide) <= 0
        visit.upload(b"no image")
        assert page.evaluate(too_wide) <= 0
        visit.upload(photo(900, 400), f"{'long' * 30}.png")
        page.fill("#threshold", "0")
        page.click("summary")
        assert page.evaluate(too_wide) <= 0
        assert page.evaluate(SMALL) == []
        image = page.locator("#image").bounding_box()
        assert image["x"] >= 0
        assert image["x"] + image["width"] <= width
