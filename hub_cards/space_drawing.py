"""How a Space draws what its model said: answers side by side, the router over the picture, proposed tags, states.

`poise space` copies this file beside `app.py`. Everything is HTML in the colours of the page, so that it reads in light
and dark alike.
"""

import base64
import html
import io

SIZE = 360  # pixels of the longer side of a drawn picture

CSS = """
.poise-head h1 { font-size: 1.65rem; font-weight: 700; margin: 0 0 .15rem; letter-spacing: -.01em; }
.poise-head p { margin: 0; color: var(--body-text-color-subdued); font-size: 1rem; }
.poise-status { border-radius: 8px; padding: .55rem .8rem; font-size: .95rem; border: 1px solid transparent; }
.poise-status.busy { background: color-mix(in srgb, #2563eb 12%, transparent); border-color: #2563eb55; }
.poise-status.good { background: color-mix(in srgb, #059669 12%, transparent); border-color: #05966955; }
.poise-status.bad { background: color-mix(in srgb, #dc2626 12%, transparent); border-color: #dc262666; }
.poise-answers { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .75rem; }
@media (max-width: 720px) { .poise-answers { grid-template-columns: 1fr; } }
.poise-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .8rem .9rem;
  background: var(--background-fill-secondary); min-height: 148px; display: flex; flex-direction: column; }
.poise-card.first { border: 2px solid #2563eb; }
.poise-card h3 { font-size: .82rem; font-weight: 600; margin: 0; color: var(--body-text-color-subdued); }
.poise-card .said { font-size: 1.45rem; font-weight: 650; margin: .3rem 0 .55rem; overflow-wrap: anywhere;
  line-height: 1.25; flex: 1; }
.poise-card .said.long { font-size: 1.05rem; }
.poise-card .said.none { font-weight: 400; color: var(--body-text-color-subdued); font-size: 1rem; }
.poise-bar { display: grid; grid-template-columns: 3.6rem 1fr 2.4rem; gap: .45rem; align-items: center;
  font-size: .8rem; margin-top: .2rem; }
.poise-bar .rail { height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
.poise-bar .fill { height: 100%; border-radius: 4px; }
.poise-bar .value { text-align: right; font-variant-numeric: tabular-nums; }
.poise-router { display: flex; gap: 1rem; align-items: flex-start; flex-wrap: wrap; }
.poise-router img { border-radius: 8px; border: 1px solid var(--border-color-primary); width: 200px; height: auto; }
.poise-router .words { flex: 1; min-width: 180px; font-size: .92rem; }
.poise-router .words p { margin: 0 0 .5rem; }
.poise-chips { display: flex; flex-wrap: wrap; gap: .4rem; }
.poise-chips span { border: 1px solid var(--border-color-primary); border-radius: 999px; padding: .18rem .65rem;
  font-size: .88rem; background: var(--background-fill-secondary); }
.poise-chips span b { color: #d97706; font-weight: 600; margin-left: .3rem; font-variant-numeric: tabular-nums; }
.poise-note { color: var(--body-text-color-subdued); font-size: .9rem; margin: 0; }
.poise-title { font-size: .82rem; font-weight: 600; color: var(--body-text-color-subdued); margin: .2rem 0 .45rem; }
"""
PICTURE_COLOR, TAG_COLOR = "#2563eb", "#d97706"


def status(kind, text):
    """A line that says what is going on; `kind` is "busy", "good" or "bad"."""
    mark = {"busy": "⏳", "good": "✓", "bad": "✗"}[kind]
    role = "alert" if kind == "bad" else "status"
    return f'<div class="poise-status {kind}" role="{role}">{mark} {html.escape(text)}</div>'


def title(text):
    return f'<div class="poise-title">{html.escape(text)}</div>'


def note(text):
    return f'<p class="poise-note">{html.escape(text)}</p>'


def answer_cards(titles, runs=None, waiting="–", has_tags=True):
    """The answers side by side; before there are any, every card says `waiting`."""
    cards = []
    for place, name in enumerate(titles):
        run = None if runs is None else runs[place]
        frame = "poise-card first" if place == 0 else "poise-card"
        cards.append(f'<div class="{frame}"><h3>{html.escape(name)}</h3>{_said(run, waiting)}{_bars(run)}</div>')
    below = "" if has_tags else note("No tags were given, so the first and the third answer see the same.")
    return f'<div class="poise-answers">{"".join(cards)}</div>{below}'


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
    return bar("picture", run.image_weight, PICTURE_COLOR) + bar("tags", run.tag_weight, TAG_COLOR)


def bar(name, value, color):
    """A weight from 0 to 1."""
    share = max(0.0, min(1.0, value))
    return (
        f'<div class="poise-bar"><span>{name}</span><div class="rail">'
        f'<div class="fill" style="width:{100 * share:.1f}%;background:{color}"></div></div>'
        f'<span class="value">{value:.2f}</span></div>'
    )


def router_view(picture, answers):
    """The picture as the router sees it, and a sentence on what it did."""
    run = answers.runs[0]
    if run.image_weight is None:
        return note("This model has no information router: both streams reach the language model as they are.")
    drawn = router_overlay(picture, run.image_weight, answers.gaze)
    words = [f"The router gives the picture a weight of {run.image_weight:.2f} and the tags {run.tag_weight:.2f}."]
    if run.image_weight < 0.5:
        words.append("The picture is unlike what it saw in training: it fades, and the tags stand in for it.")
    if answers.gaze is not None:
        words.append("Warm patches are those it draws on to stand in for what the tags lack.")
    text = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in words)
    return (
        f'<div class="poise-router"><img src="{_as_data(drawn)}" alt="The picture under the router\'s weights">'
        f'<div class="words">{text}</div></div>'
    )


def router_overlay(picture, weight, gaze):
    """
    The picture, faded to grey as far as the router distrusts it, under the router's gaze.

    Args:
        picture (`PIL.Image`), weight (`float`): of the picture as a whole.
        gaze: rows of floats over the patches that sum to 1, or `None`.
    """
    from PIL import Image

    scale = SIZE / max(picture.size)
    size = tuple(max(1, round(scale * side)) for side in picture.size)
    # Small drawn scenes keep their edges; photographs are smoothed.
    shown = picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    shown = Image.blend(Image.new("RGB", size, (128, 128, 128)), shown, max(0.0, min(1.0, weight)))
    if gaze is None:
        return shown
    highest = max(max(row) for row in gaze)
    heat = Image.new("L", (len(gaze[0]), len(gaze)))
    heat.putdata([round(165 * value / highest) for row in gaze for value in row])
    heat = heat.resize(size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", size, (249, 115, 22)), shown, heat)


def proposed_tags(tags, problem=None):
    """The tagger's tags as chips, or why there are none."""
    if problem:
        return note(problem)
    if not tags:
        return note("The tagger finds nothing in this picture that it has a word for.")
    chips = "".join(f"<span>{html.escape(name)}<b>{score:.2f}</b></span>" for name, score in tags)
    return f'<div class="poise-chips">{chips}</div>'


def _as_data(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
