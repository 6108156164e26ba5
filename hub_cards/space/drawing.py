"""How a Space draws what its model said: answers side by side, the router over the image, proposed tags, states.

`poise space` copies this file beside `app.py`. Everything is HTML in the colours of the page, so that it reads in light
and dark alike.
"""

import base64
import html
import io

SIZE = 360  # pixels of the longer side of a drawn image

CSS = """
.gradio-container { --quiet: color-mix(in srgb, var(--body-text-color) 68%, transparent);
  max-width: 1180px !important; margin: 0 auto !important;
  /* The table's columns have fixed widths: without these two, a screen that turns upright keeps the page wide. */
  min-width: 0; width: 100%; }
.gradio-container :is(button, input, textarea, [tabindex]):focus-visible { outline: 3px solid #1d4ed8 !important;
  outline-offset: 2px; }
.poise-head h1 { font-size: 1.7rem; font-weight: 700; margin: 0 0 .1rem; letter-spacing: -.01em; }
.poise-head p { margin: 0; color: var(--quiet); font-size: 1rem; }
.poise-status { border-radius: 8px; padding: .5rem .8rem; font-size: .95rem; border: 1px solid transparent;
  display: flex; gap: .55rem; align-items: center; }
.poise-status.busy { background: color-mix(in srgb, #2563eb 12%, transparent); border-color: #2563eb55; }
.poise-status.good { background: color-mix(in srgb, #059669 12%, transparent); border-color: #05966955; }
.poise-status.bad { background: color-mix(in srgb, #dc2626 12%, transparent); border-color: #dc262688; }
.poise-status i { flex: none; width: .8rem; height: .8rem; border-radius: 50%; background: #059669; }
.poise-status.bad i { background: #dc2626; }
.poise-status.busy i { background: none; border: 2px solid #2563eb; border-top-color: transparent;
  animation: poise-turn .8s linear infinite; }
@keyframes poise-turn { to { transform: rotate(360deg); } }
.poise-section { margin: 0 0 .35rem; }
.poise-section > h2 { font-size: .88rem; font-weight: 600; color: var(--quiet); margin: 0 0 .45rem; }
.poise-answers { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .75rem; }
.poise-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .75rem .9rem;
  background: var(--background-fill-primary); min-height: 142px; display: flex; flex-direction: column; }
.poise-card.first { border: 2px solid #2563eb; }
.poise-card h3 { font-size: .84rem; font-weight: 600; margin: 0; color: var(--quiet); }
.poise-card .said { font-size: 1.5rem; font-weight: 650; margin: .25rem 0 .5rem; overflow-wrap: anywhere;
  line-height: 1.25; flex: 1; }
.poise-card .said.long { font-size: 1.05rem; }
.poise-card .said.none { font-weight: 400; color: var(--quiet); font-size: 1rem; }
.poise-bar { display: grid; grid-template-columns: 4.6rem 1fr 2.1rem; gap: .45rem; align-items: center;
  font-size: .8rem; margin-top: .2rem; }
.poise-bar .rail { height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
.poise-bar .fill { height: 100%; border-radius: 4px; }
.poise-bar .value { text-align: right; font-variant-numeric: tabular-nums; }
.poise-router { display: flex; gap: 1rem; align-items: flex-start; flex-wrap: wrap; }
.poise-router figure { margin: 0; width: 178px; font-size: .8rem; color: var(--quiet); }
.poise-router figure img { border-radius: 8px; border: 1px solid var(--border-color-primary); width: 100%;
  height: auto; display: block; margin-bottom: .25rem; }
.poise-router .words { flex: 1; min-width: 170px; font-size: .94rem; }
.poise-router .words p { margin: 0 0 .5rem; }
.poise-chips { display: flex; flex-wrap: wrap; gap: .4rem; }
.poise-chips span { border: 1px solid var(--border-color-primary); border-radius: 999px; padding: .15rem .65rem;
  font-size: .88rem; background: var(--background-fill-primary); }
.poise-chips span b { color: #b45309; font-weight: 600; margin-left: .3rem; font-variant-numeric: tabular-nums; }
.poise-note { color: var(--quiet); font-size: .9rem; margin: .35rem 0 0; }
/* The theme's labels, hints and button are too faint for WCAG AA. */
.gradio-container :is([data-testid="block-info"], [data-testid="block-label"], [data-testid="upload-text"],
  [data-testid="upload-text"] .or, .label > p, .show-api) { color: var(--body-text-color) !important; }
.gradio-container #ask { background: #1d4ed8; color: #fff; }
#picture img { image-rendering: auto; width: 100%; height: 100%; object-fit: contain; }
#examples .grid-wrap { min-height: 0; padding: 0; }
#examples .grid-container { gap: .75rem; }
#examples .thumbnail-item { height: 132px; aspect-ratio: auto; }
#examples .thumbnail-item img { object-fit: contain; }
@media (max-width: 720px) { .poise-answers { grid-template-columns: 1fr; }
  .poise-router figure { width: calc(50% - .6rem); } .poise-card { min-height: 0; }
  .poise-head h1 { font-size: 1.35rem; overflow-wrap: anywhere; }
  #examples, #examples .grid-wrap { height: auto !important; max-height: none !important; overflow: visible; }
  #examples .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
  #examples .caption-label { white-space: normal; font-size: .8rem; line-height: 1.2; } }
"""
IMAGE_COLOR, TAG_COLOR = "#2563eb", "#d97706"


def status(kind, text):
    """A line that says what is going on; `kind` is "busy", "good" or "bad"."""
    role = "alert" if kind == "bad" else "status"
    return f'<div class="poise-status {kind}" role="{role}"><i></i><span>{html.escape(text)}</span></div>'


def heading(title, sentence, caution=""):
    warned = f"<p><b>Not for:</b> {html.escape(caution)}</p>" if caution else ""
    return f'<div class="poise-head"><h1>{html.escape(title)}</h1><p>{html.escape(sentence)}</p>{warned}</div>'


def section(title, content):
    """A part of the page under its title."""
    return f'<div class="poise-section"><h2>{html.escape(title)}</h2>{content}</div>'


def note(text):
    return f'<p class="poise-note">{html.escape(text)}</p>'


def answer_cards(titles, runs=None, waiting="–", has_tags=True):
    """The answers side by side; before there are any, every card says `waiting`."""
    cards = []
    for place, name in enumerate(titles):
        run = None if runs is None else runs[place]
        frame = "poise-card first" if place == 0 else "poise-card"
        cards.append(f'<div class="{frame}"><h3>{html.escape(name)}</h3>{_said(run, waiting)}{_bars(run)}</div>')
    below = "Switched off means: a plain grey image in its place, or no tags. Bars: the router's weights."
    if not has_tags:
        below = "No tags were given, so the first and the third answer see the same. Bars: the router's weights."
    grid = f'<div class="poise-answers">{"".join(cards)}</div>{note(below)}'
    return section("The same question with everything, and with one side switched off", grid)


def _said(run, waiting):
    if run is None:
        return f'<div class="said none">{html.escape(waiting)}</div>'
    if not run.text:
        return '<div class="said none">(the model said nothing)</div>'
    size = "said long" if len(run.text) > 40 else "said"
    return f'<div class="{size}">{html.escape(run.text)}</div>'


def _bars(run):
    if run is None or run.image_weight is None:
        return ""
    # Where the image is switched off, the weight is that of the grey one in its place, and is called so.
    image, tags = "image" if run.sees_image else "grey image", "tags" if run.sees_tags else "no tags"
    return bar(image, run.image_weight, IMAGE_COLOR) + bar(tags, run.tag_weight, TAG_COLOR)


def bar(name, value, color):
    """A weight from 0 to 1."""
    share = max(0.0, min(1.0, value))
    return (
        f'<div class="poise-bar"><span>{name}</span><div class="rail">'
        f'<div class="fill" style="width:{100 * share:.1f}%;background:{color}"></div></div>'
        f'<span class="value">{value:.2f}</span></div>'
    )


def router_view(image=None, answers=None):
    """The image as the router sees it, and what it did in a few sentences; before an answer, where that will be."""
    return section("What the router makes of the image", _router_view(image, answers))


def _router_view(image, answers):
    if answers is None:
        return note("Appears with the answers.")
    run = answers.runs[0]
    if run.image_weight is None:
        return note("This model has no information router: both streams reach the language model as they are.")
    words = [f"It lets {run.image_weight:.0%} of the image through, and {run.tag_weight:.0%} of the tags."]
    if run.image_weight < 0.5:
        words.append("The image is unlike what the router saw in training. It fades to grey, and the tags stand in.")
    if run.tag_weight < 0.5:
        words.append("The tags are missing or unlike what it saw in training: the image stands in.")
    if min(run.image_weight, run.tag_weight) >= 0.5:
        words.append("It trusts both.")
    drawn = [(router_overlay(image, 1.0, None), "the image as given")]
    drawn.append((router_overlay(image, run.image_weight, None), "what the router lets through"))
    if answers.gaze is not None:
        drawn.append((router_overlay(image, 1.0, answers.gaze), "where its stand-in for the tags attends"))
    figures = "".join(
        f'<figure><img src="{_as_data(shown)}" alt=""><figcaption>{html.escape(label)}</figcaption></figure>'
        for shown, label in drawn
    )
    text = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in words)
    return f'<div class="poise-router">{figures}<div class="words">{text}</div></div>'


def router_overlay(image, weight, gaze):
    """
    The image, faded to grey as far as the router distrusts it, under the router's gaze.

    Args:
        image (`PIL.Image`), weight (`float`): of the image as a whole.
        gaze: rows of floats over the patches that sum to 1, or `None`.
    """
    from PIL import Image

    scale = SIZE / max(image.size)
    size = tuple(max(1, round(scale * side)) for side in image.size)
    # Small drawn scenes keep their edges; photographs are smoothed.
    shown = image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    shown = Image.blend(Image.new("RGB", size, (128, 128, 128)), shown, max(0.0, min(1.0, weight)))
    if gaze is None:
        return shown
    highest = max(max(row) for row in gaze)
    heat = Image.new("L", (len(gaze[0]), len(gaze)))
    heat.putdata([round(165 * value / highest) for row in gaze for value in row])
    heat = heat.resize(size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", size, (249, 115, 22)), shown, heat)


def proposed_tags(tags=None, problem=None):
    """The tagger's tags as chips, or why there are none; before there is an image, where they will be."""
    if problem:
        content = note(problem)
    elif tags is None:
        content = note("Appears with an image.")
    elif not tags:
        content = note("The tagger finds nothing in this image that it has a word for.")
    else:
        chips = "".join(f"<span>{html.escape(name)} <b>{score:.2f}</b></span>" for name, score in tags)
        content = f'<div class="poise-chips">{chips}</div>'
    return section("Tags that the tagger proposes", content)


def _as_data(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
