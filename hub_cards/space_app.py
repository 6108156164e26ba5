"""The page of a Space: a picture, tags with scores, a question; three answers side by side, and what the router did.

`poise space` copies this file as `app.py`. It needs gradio, and what is copied beside it; `python app.py` runs it.
"""

from pathlib import Path


def build(model):
    """
    The page, as `gradio.Blocks`.

    Args:
        model (`AnsweringModel`): loading, or loaded.
    """
    import gradio as gr
    from space_answers import RUNS, check_tags  # type: ignore[import-not-found]
    from space_drawing import (  # type: ignore[import-not-found]
        answer_cards,
        note,
        proposed_tags,
        router_view,
        status,
        title,
    )

    settings = model.settings
    titles = [name for name, _, _ in RUNS]
    nothing_yet = note("Appears with the answers.")

    def wait_until_loaded():
        """The first state of the page, and the one after the model has been loaded."""
        if not model.ready.is_set():
            yield status("busy", f"Loading {settings['shown_model']} …"), gr.update(interactive=False)
        model.ready.wait()
        if model.problem:
            yield status("bad", f"The model could not be loaded: {model.problem}"), gr.update(interactive=False)
        else:
            yield status("good", "Ready: choose a picture and ask."), gr.update(interactive=True)

    def ask(picture, question, rows):
        """States of (status, answers, router, button): working, then the answers or what is wrong."""
        working = answer_cards(titles, waiting="thinking …")
        yield status("busy", "Asking three times …"), working, nothing_yet, gr.update(interactive=False)
        try:
            tags = check_tags(rows)
            answers = model.answer(picture, question, tags)
        except ValueError as error:
            yield status("bad", str(error)), answer_cards(titles), nothing_yet, gr.update(interactive=True)
            return
        except (RuntimeError, OSError) as error:  # torch says so when memory is short
            said = " ".join(str(error).split())[:200]
            yield (
                status("bad", f"The model failed: {said}"),
                answer_cards(titles, waiting="no answer"),
                nothing_yet,
                gr.update(interactive=True),
            )
            return
        cards = answer_cards(titles, answers.runs, has_tags=bool(tags))
        done = status("good", f"Answered in {answers.seconds:.1f} s.")
        yield done, cards, router_view(picture, answers), gr.update(interactive=True)

    def propose(picture):
        """What the tagger sees: (chips, state, button that takes them over)."""
        if picture is None:
            return note("Appears with a picture."), [], gr.update(interactive=False)
        try:
            tags = model.propose(picture)
        except ValueError as error:
            return proposed_tags([], str(error)), [], gr.update(interactive=False)
        return proposed_tags(tags), tags, gr.update(interactive=bool(tags))

    with gr.Blocks(title=settings["title"], analytics_enabled=False) as page:
        gr.HTML(f'<div class="poise-head"><h1>{settings["title"]}</h1><p>{settings["sentence"]}</p></div>')
        said = gr.HTML(status("busy", "Starting …"), elem_id="status")
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                picture = gr.Image(
                    type="pil", format="png", label="Picture", sources=["upload", "clipboard"], height=260,
                    elem_id="picture", buttons=[],
                )  # fmt: skip
                question = gr.Textbox(label="Question", placeholder=settings["placeholder"], elem_id="question")
                rows = gr.Dataframe(
                    headers=["tag", "score"], datatype=["str", "number"], column_count=2, row_count=3, type="array",
                    interactive=True, label="Tags and their scores (0 to 1); leave empty for none", elem_id="tags",
                    column_widths=["70%", "30%"], buttons=[], max_height=220,
                )  # fmt: skip
                button = gr.Button("Ask", variant="primary", interactive=False, elem_id="ask")
            with gr.Column(scale=7, min_width=360):
                gr.HTML(title("The same question, with everything and with one side switched off"))
                cards = gr.HTML(answer_cards(titles), elem_id="answers")
                gr.HTML(title("What the router makes of the picture"))
                router = gr.HTML(nothing_yet, elem_id="router")
                gr.HTML(title("Tags that the tagger proposes"))
                chips = gr.HTML(note("Appears with a picture."), elem_id="proposals")
                take = gr.Button("Use these tags", size="sm", interactive=False, elem_id="take")
                gr.HTML(note("Switched off: a plain grey picture stands in for the picture; no tags for the tags."))
        proposals = gr.State([])
        examples = settings.get("examples") or []
        if examples:
            here = Path(__file__).parent
            gr.Examples(
                [[str(here / one["image"]), one["question"], one["tags"]] for one in examples],
                inputs=[picture, question, rows],
                label="Drawn scenes to try",
                elem_id="examples",
            )
        asked = {"inputs": [picture, question, rows], "outputs": [said, cards, router, button]}
        button.click(ask, **asked, show_progress="hidden")
        question.submit(ask, **asked, show_progress="hidden")
        picture.change(propose, [picture], [chips, proposals, take], show_progress="hidden")
        take.click(lambda tags: tags, [proposals], [rows], show_progress="hidden")
        page.load(wait_until_loaded, None, [said, button], show_progress="hidden")
    return page


def look():
    """Arguments of `launch` that make the page look as it does; no font comes from another host."""
    import gradio as gr
    from space_drawing import CSS  # type: ignore[import-not-found]

    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    theme = gr.themes.Soft(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "css": CSS, "footer_links": ["api"], "max_file_size": "20mb"}


if __name__ == "__main__":
    from space_answers import AnsweringModel  # type: ignore[import-not-found]

    answering = AnsweringModel.of_folder(Path(__file__).parent)
    answering.start_loading()
    build(answering).queue(max_size=32).launch(**look())
