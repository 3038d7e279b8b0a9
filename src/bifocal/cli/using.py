"""Commands that put finished models to use."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from bifocal import config
from bifocal.cli.shared import Dtype, open_vlm

if TYPE_CHECKING:
    from bifocal.generation.telling import AnswerOptions


def ask(
    run: tyro.conf.Positional[Path],
    words: tyro.conf.Positional[tuple[str, ...]],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: tuple[str, ...] = (),
    explain: Path | None = None,
    url: str | None = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Ask a VLM about one or several pictures; the last word group is the question.

    Example: bifocal ask runs/quickstart/vlm-continuous owl.png "what is on the blue tile?" --explain why.html

    Args:
        run: a finished VLM; with --url the name of one on that server.
        words: picture files, then the question.
        max_new_tokens: the longest answer.
        temperature: 0 gives the most likely answer.
        top_k: of sampling, the most likely tokens to choose from; 0 is all.
        top_p: of sampling, the share of probability to choose from.
        seed: of sampling; 0 if not given, but with --url one that the server draws.
        stop: texts before the first of which the answer ends.
        explain: write a page (HTML) that shows where the model looked for each word and what else it might have said.
        url: ask a server that runs already (bifocal serve); its key is read from BIFOCAL_KEY.
        json_output: print the answer as JSON.
        device: where to compute.
        dtype: auto is bf16 where it is fast; int8 besides rounds the weights of a VLM's decoder to 8 bits, on a CPU.
    """
    if len(words) < 2:
        raise config.UserError(
            'give at least one picture and a question, as in: bifocal ask RUN owl.png "what is this?"'
        )
    pictures, question = [Path(word) for word in words[:-1]], words[-1]
    aloud = explain is None and url is None and not json_output and sys.stdout.isatty()
    settings: AnswerOptions = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "stop": stop,
    }
    if explain is not None:
        from bifocal.commands.explain import write_explanation

        if temperature > 0:
            raise config.UserError("--explain is about the most likely answer: leave --temperature at 0")
        if stop:
            raise config.UserError("--explain is about every word up to the end: leave out --stop")
        if url is not None:
            raise config.UserError(
                "--explain looks into the model itself, and --url leaves it to a server: give one"
            )
        model = open_vlm(run, "questions are", device=device, dtype=dtype)
        explanation = model.explain(pictures, question, max_new_tokens=max_new_tokens)
        answer = explanation.answer
        write_explanation(explain, explanation, pictures, question, model)
    elif url is not None:
        from bifocal.commands.remote import ask_server

        answer = ask_server(url, run.name, pictures, question, **settings)
    else:
        from bifocal.commands.ask import answer_aloud

        model = open_vlm(run, "questions are", device=device, dtype=dtype)
        if aloud:
            answer = answer_aloud(model, pictures, question, **settings)
        else:
            answer = model.answer(pictures, question, **settings)
    if json_output:
        about = {"text": answer.text, "boxes": answer.boxes, "finish_reason": answer.finish_reason}
        print(json.dumps({**about, "logprobs": answer.logprobs}))
    else:
        if not aloud:
            print(answer.text)
        for box in answer.boxes:
            print("box " + " ".join(f"{side:.3f}" for side in box))


def draw(
    run: tyro.conf.Positional[Path],
    prompt: tyro.conf.Positional[str | None] = None,
    prompts: str | None = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1,
    guidance: float | None = None,
    schedule: Literal["constant", "linear"] = "constant",
    seed: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rerank: Path | None = None,
    candidates: int | None = None,
    size: tuple[int, int] | None = None,
    url: str | None = None,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Let a Parti or a discrete VLM draw a prompt, or many from a file.

    Example: bifocal draw runs/parti "an owl and two hearts" -n 4 --rerank runs/quickstart/clip -o drawing.png

    Args:
        run: a finished Parti or discrete VLM; with --url the name of one on that server.
        prompt: what to draw.
        prompts: a file of prompts (a text with one a line, a table with tabs and the columns Prompt, Category and
            Challenge, or JSON lines), or "default" for 420 of ours; goes on where it was stopped.
        output: a PNG, drawing.png if not given, in which several pictures stand side by side; of many prompts a folder,
            drawings if not given.
        n: how many pictures of each prompt.
        guidance: of the prompt; 1 is plain sampling (3 for a Parti and 5 for a VLM if not given).
        schedule: of a Parti, whether guidance is the same for all codes or rises from 1 at the first.
        seed: of sampling; 0 if not given, but of one prompt with --url one that the server draws.
        temperature: of sampling; 0 takes the most likely code.
        top_k: of sampling, the most likely codes to choose from; 0 is all.
        top_p: of sampling, the share of probability to choose from.
        rerank: a CLIP that puts the pictures in order, best first.
        candidates: draw so many, and keep the n that the CLIP puts first.
        size: width and height in pixels, of a Parti.
        url: let a server draw that runs already (bifocal serve); its key is read from BIFOCAL_KEY.
        device: where to compute.
        dtype: auto is bf16 where it is fast; int8 besides rounds the weights of a VLM's decoder to 8 bits, on a CPU.
    """
    from bifocal.commands.draw import DrawSettings, draw_command
    from bifocal.commands.draw_many import draw_many

    if (prompt is None) == (prompts is None):
        raise config.UserError('give what to draw, as "an owl", or a file of prompts with --prompts FILE')
    settings = DrawSettings(
        n, guidance, schedule, seed, temperature, top_k, top_p, rerank, candidates, size, url
    )
    if prompt is not None:
        output = output or Path("drawing.png")
        draw_command(run, prompt, output, settings, device=device, dtype=dtype)
    else:
        assert prompts is not None
        output = draw_many(run, prompts, output or Path("drawings"), settings, device=device, dtype=dtype)
    print(f"wrote {output}")


def search(
    run: tyro.conf.Positional[Path],
    folder: tyro.conf.Positional[Path],
    query: tyro.conf.Positional[str],
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    top: int = 12,
    index: Path | None = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Find the pictures of a folder by what they show, or by another picture.

    Example: bifocal search runs/quickstart/clip pictures "an owl on a red tile" -o found.png

    Args:
        run: a finished CLIP.
        folder: of pictures, subfolders included; it is indexed at the first search, and brought up to date later.
        query: words, or the path of a picture.
        output: a sheet of what was found, .png or .html.
        top: how many pictures.
        index: where the index lies (FOLDER-RUN.index beside the folder if not given).
        json_output: print JSON and nothing else.
        device: where to compute.
        dtype: auto is bf16 where it is fast.
    """
    from bifocal.commands.search import search_command

    answer = search_command(
        run, folder, query, top=top, index=index, output=output, device=device, dtype=dtype
    )
    if json_output:
        print(json.dumps(answer))
        return
    for found in answer["results"]:
        print(f"{found['rank']:>3}  {found['score']:.3f}  {folder / found['file']}")
    if output is not None:
        print(f"wrote {output}")


def serve(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    host: str = "127.0.0.1",
    port: int = 8000,
    key: tuple[str, ...] = (),
    origin: tuple[str, ...] = (),
    name: tuple[str, ...] = (),
    picture_host: tuple[str, ...] = (),
    slots: int = 16,
    context: int = 2048,
    prefill: int = 256,
    limit: tuple[str, ...] = (),
    grace: float = 30.0,
    log_contents: bool = False,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Serve models on a page and behind the OpenAI API.

    Example: bifocal serve runs/quickstart/vlm-continuous runs/quickstart/vlm-discrete runs/quickstart/clip

    Args:
        runs: finished runs of any kind.
        host: where to listen; beyond this machine only with a key.
        port: where to listen; 0 takes any that is free.
        key: who knows one of these may ask; also from BIFOCAL_KEY, where other programs do not see it.
        origin: pages of other servers that may call this one, as https://example.org.
        name: what this server may be called in a Host header, where it is behind another one.
        picture_host: hosts that pictures may be fetched from, as images.example.org; without, none are fetched.
        slots: answers that grow side by side in each VLM.
        context: tokens of a conversation and its answer.
        prefill: tokens of new questions that are read between two tokens of running answers.
        limit: NAME=VALUE for any of the limits in docs/serving.md, as pictures=4.
        grace: seconds that running answers have to end at a signal.
        log_contents: write questions and answers into the log, too.
        device: where to compute.
        dtype: auto is bf16 where it is fast; int8 besides rounds the weights of a VLM's decoder to 8 bits, on a CPU.
    """
    import os

    from bifocal.serving.access import Access, keys_of
    from bifocal.serving.engine import EngineSettings
    from bifocal.serving.limits import limits_of
    from bifocal.serving.run import Settings
    from bifocal.serving.run import serve as go

    settings = Settings(
        port=port,
        access=Access(host, keys_of(key, os.environ.get("BIFOCAL_KEY")), origin, name),
        limits=limits_of(limit),
        engine=EngineSettings(slots, context, prefill),
        picture_hosts=picture_host,
        log_contents=log_contents,
        grace=grace,
    )
    go(runs, settings, device=device, dtype=dtype)
