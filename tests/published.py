"""Every published format at toy size, drawn and written by us: what a user who has the real one has on disk."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 80, 60


def write(path: Path, value: Any) -> Path:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path: Path, values: Sequence[Any]) -> Path:
    """A file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8"
    )
    return path


def draw(path: Path, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A picture of some coloured rectangles, another for every seed."""
    rng = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), rng.integers(150, 255, 3), dtype=np.uint8)
    for _ in range(4):
        x, y = rng.integers(0, size[0] - 12), rng.integers(0, size[1] - 12)
        w, h = rng.integers(6, size[0] - x), rng.integers(6, size[1] - y)
        pixels[y : y + h, x : x + w] = rng.integers(0, 255, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


# ------------------------------------------------------------ pickles of Python 2


def python2_pickle(value: Any) -> bytes:
    """A pickle as Python 2 writes it: texts are byte strings, protocol 2."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value: Any) -> bytes:
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode("latin1")
        return b"T" + struct.pack("<I", len(data)) + data
    if isinstance(value, list):
        return b"](" + b"".join(_pickled(item) for item in value) + b"e"
    assert isinstance(value, dict)
    return b"}(" + b"".join(_pickled(k) + _pickled(v) for k, v in value.items()) + b"u"


# ------------------------------------------------------------ VQAv2


def vqav2(place: Path) -> dict[str, Path]:
    """Six questions about three pictures, two of each answer type."""
    asked = [
        (1, 10, "is it red?", "yes/no", ["yes"] * 10),
        (2, 10, "how many?", "number", ["2"] * 8 + ["two", "3"]),
        (3, 11, "what is it?", "other", ["owl"] * 4 + ["bird"] * 3 + ["cat", "dog", "the owl"]),
        (4, 11, "is it?", "yes/no", ["no"] * 9 + ["yes"]),
        (5, 12, "how many?", "number", ["3"] * 10),
        (6, 12, "what?", "other", ["t-shirt"] * 10),
    ]
    header = {
        "info": {},
        "data_type": "mscoco",
        "data_subtype": "val2014",
        "license": {},
        "task_type": "Open-Ended",
    }
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text, _, _ in asked]
    annotations = [
        {
            "question_id": q,
            "image_id": i,
            "question_type": "what",
            "answer_type": kind,
            "multiple_choice_answer": answers[0],
            "answers": [
                {"answer_id": n, "answer": answer, "answer_confidence": "yes"}
                for n, answer in enumerate(answers, 1)
            ],
        }
        for q, i, _, kind, answers in asked
    ]
    for image in (10, 11, 12):
        draw(place / "val2014" / f"COCO_val2014_{image:012d}.jpg", image)
    return {
        "questions": write(place / "questions.json", header | {"questions": questions}),
        "annotations": write(place / "annotations.json", header | {"annotations": annotations}),
        "results": write(
            place / "results.json",
            [{"question_id": q, "answer": answers[0]} for q, _, _, _, answers in asked],
        ),
        "pictures": place / "val2014",
    }


# ------------------------------------------------------------ GQA


def gqa(place: Path) -> dict[str, Path]:
    """Two balanced questions and one that the first entails, on one picture each."""

    def question(
        answer: str, image: str, *, balanced: bool, entailed: Sequence[str], group: str | None
    ) -> dict:
        return {
            "question": "What color is it?",
            "answer": answer,
            "imageId": image,
            "isBalanced": balanced,
            "entailed": list(entailed),
            "groups": {"global": group, "local": "x"},
            "types": {"structural": "query", "semantic": "attr", "detailed": "categoryAttr"},
            "semantic": [{"operation": "select", "argument": "owl"}],
            "annotations": {},
        }

    questions = {
        "001": question("red", "n1", balanced=True, entailed=["001", "002"], group="color"),
        "002": question("yes", "n1", balanced=False, entailed=[], group=None),
        "003": question("blue", "n2", balanced=True, entailed=["003"], group="color"),
    }
    for number, name in enumerate(("n1", "n2")):
        draw(place / "images" / f"{name}.jpg", 100 + number)
    choices = {q: {"valid": ["red", "blue"], "plausible": ["red"]} for q in questions}
    said = {"001": "red", "002": "no", "003": "red"}
    return {
        "questions": write(place / "val_all_questions.json", questions),
        "choices": write(place / "val_choices.json", choices),
        "results": write(place / "preds.json", [{"questionId": q, "prediction": a} for q, a in said.items()]),
        "pictures": place / "images",
    }


# ------------------------------------------------------------ captions

CAPTIONS = {
    7: ["a red owl on a tile", "an owl in red"],
    8: ["two hearts above a boat", "hearts over some boat", "a boat below hearts"],
    9: ["a dog runs", "the dog is running fast"],
}


def coco(place: Path) -> dict[str, Path]:
    """Three pictures with captions."""
    images = [
        {"id": image, "file_name": f"COCO_val2014_{image:012d}.jpg", "width": WIDTH, "height": HEIGHT}
        for image in CAPTIONS
    ]
    captions = [(image, text) for image, texts in CAPTIONS.items() for text in texts]
    annotations = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captions)]
    for image in CAPTIONS:
        draw(place / "val2014" / f"COCO_val2014_{image:012d}.jpg", image)
    said = {7: "a red owl on a tile", 8: "a boat and two hearts", 9: "a cat sleeps"}
    return {
        "annotations": write(place / "captions_val2014.json", {"images": images, "annotations": annotations}),
        "results": write(
            place / "results.json", [{"image_id": i, "caption": text} for i, text in said.items()]
        ),
        "pictures": place / "val2014",
    }


def karpathy(place: Path) -> dict[str, Path]:
    """The same three pictures, one of each split."""
    files = coco(place)
    splits = ("restval", "val", "test")
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{image:012d}.jpg",
            "imgid": number,
            "cocoid": image,
            "split": split,
            "sentids": [],
            "sentences": [
                {"raw": text, "tokens": text.split(), "imgid": number, "sentid": n}
                for n, text in enumerate(texts)
            ],
        }
        for number, ((image, texts), split) in enumerate(zip(CAPTIONS.items(), splits, strict=True))
    ]
    annotations = write(place / "dataset_coco.json", {"images": images, "dataset": "coco"})
    results = write(place / "test.json", [{"image_id": 9, "caption": "a dog runs"}])
    return files | {"annotations": annotations, "results": results, "pictures": place}


# ------------------------------------------------------------ NLVR2


def nlvr2(place: Path) -> dict[str, Path]:
    """One sentence about two pairs, and another about the first."""
    lines = [
        {
            "identifier": f"dev-3-{pair}-{sentence}",
            "sentence": words,
            "label": label,
            "left_url": "",
            "right_url": "",
            "synset": "owl",
            "query": "owl",
            "writer": 1,
            "directory": 7,
            "validation": {},
        }
        for pair, sentence, words, label in (
            (0, 0, "There are two owls.", "True"),
            (1, 0, "There are two owls.", "False"),
            (0, 1, "The left image has a dog.", "False"),
        )
    ]
    for pair in (0, 1):
        for side in (0, 1):
            draw(place / "images" / "7" / f"dev-3-{pair}-img{side}.png", 10 * pair + side)
    results = place / "preds.csv"
    write_lines(place / "dev.json", lines)
    results.write_text("dev-3-0-0,True\ndev-3-1-0,false\ndev-3-0-1,True\n")
    return {"annotations": place / "dev.json", "results": results, "pictures": place / "images"}


# ------------------------------------------------------------ RefCOCO

BOXES = {501: [10.0, 20.0, 30.0, 25.5], 502: [40.0, 5.0, 20.0, 20.0]}  # x, y, width, height
EXPRESSIONS = {501: ("val", 41, ["left owl", "owl on the left"]), 502: ("testA", 42, ["man in red"])}


def refcoco(place: Path) -> dict[str, Path]:
    """Two objects, three expressions, in the two files that RefCOCO is."""
    refs, sentence = [], 0
    for annotation, (split, image, texts) in EXPRESSIONS.items():
        sentences = []
        for words in texts:
            sentences.append({"sent_id": sentence, "sent": words, "raw": words, "tokens": words.split()})
            sentence += 1
        refs.append(
            {
                "ref_id": annotation,
                "ann_id": annotation,
                "category_id": 1,
                "image_id": image,
                # as in RefCOCO and RefCOCO+: a running number; only RefCOCOg's is the annotation's
                "file_name": f"COCO_train2014_{image:012d}_{len(refs) + 16}.jpg",
                "split": split,
                "sent_ids": [s["sent_id"] for s in sentences],
                "sentences": sentences,
            }
        )
        draw(place / "train2014" / f"COCO_train2014_{image:012d}.jpg", image)
    (place / "refs(unc).p").write_bytes(python2_pickle(refs))
    instances = {
        "images": [
            {"id": image, "width": WIDTH, "height": HEIGHT, "file_name": f"COCO_train2014_{image:012d}.jpg"}
            for _, image, _ in EXPRESSIONS.values()
        ],
        "annotations": [
            {"id": annotation, "image_id": EXPRESSIONS[annotation][1], "category_id": 1, "bbox": box}
            for annotation, box in BOXES.items()
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    said = [{"sent_id": 0, "bbox": [10, 20, 40, 45]}, {"sent_id": 1, "bbox": [0, 0, 5, 5]}]
    return {
        "refs": place / "refs(unc).p",
        "instances": write(place / "instances.json", instances),
        "results": write_lines(place / "val.jsonl", said),
        "pictures": place / "train2014",
    }


def refcoco_lines(place: Path) -> dict[str, Path]:
    """The same as JSON lines."""
    lines, said = [], []
    for annotation, (_, image, texts) in EXPRESSIONS.items():
        x, y, w, h = BOXES[annotation]
        name = f"train2014/COCO_train2014_{image:012d}.jpg"
        draw(place / name, image)
        for words in texts:
            box = [x, y, x + w, y + h]
            lines.append({"image": name, "sent": words, "bbox": box, "width": WIDTH, "height": HEIGHT})
            said.append({"image": name, "sent": words, "bbox": box})
    return {
        "annotations": write_lines(place / "refcoco_val.jsonl", lines),
        "results": write_lines(place / "said.jsonl", said),
        "pictures": place,
    }


def refcoco_mdetr(place: Path) -> dict[str, Path]:
    """The same as MDETR wrote it."""
    images, annotations = [], []
    for annotation, (_, image, texts) in EXPRESSIONS.items():
        draw(place / "train2014" / f"COCO_train2014_{image:012d}.jpg", image)
        for words in texts:
            identity = len(images)
            images.append(
                {
                    "id": identity,
                    "file_name": f"COCO_train2014_{image:012d}.jpg",
                    "width": WIDTH,
                    "height": HEIGHT,
                    "caption": words,
                    "dataset_name": "refcoco",
                    "original_id": image,
                    "tokens_negative": [[0, len(words)]],
                }
            )
            annotations.append(
                {"id": identity, "image_id": identity, "bbox": BOXES[annotation], "category_id": 1}
            )
    whole = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    said = [{"id": image["id"], "bbox": [0, 0, 1, 1]} for image in images]
    return {
        "annotations": write(place / "finetune_refcoco_val.json", whole),
        "results": write_lines(place / "said.jsonl", said),
        "pictures": place / "train2014",
    }


# ------------------------------------------------------------ CLEVR


def clevr(place: Path) -> dict[str, Path]:
    """Four questions of four types about two pictures."""
    asked = [
        ("How many owls?", "2", "count", 3),
        ("Is there an owl?", "yes", "exist", 4),
        ("Are there more owls than hearts?", "no", "greater_than", 3),
        ("What color is the owl?", "red", "query_color", 9),
    ]
    questions = [
        {
            "split": "val",
            "image_filename": f"CLEVR_val_{number % 2:06d}.png",
            "image_index": number % 2,
            "question": words,
            "answer": answer,
            "program": [
                {"function": "scene", "inputs": [], "value_inputs": []},
                {"function": step, "inputs": [0], "value_inputs": []},
            ],
            "question_family_index": family,
            "question_index": number,
        }
        for number, (words, answer, step, family) in enumerate(asked)
    ]
    for number in (0, 1):
        draw(place / "images" / "val" / f"CLEVR_val_{number:06d}.png", number)
    said = [{"question_index": n, "answer": a} for n, (_, a, _, _) in enumerate(asked)]
    said[2]["answer"] = "yes"
    return {
        "annotations": write(place / "CLEVR_val_questions.json", {"info": {}, "questions": questions}),
        "results": write(place / "said.json", said),
        "pictures": place / "images",
    }


# ------------------------------------------------------------ for training alone


def llava(place: Path) -> dict[str, Path]:
    """A conversation of two turns, one about two pictures with the picture behind the words, and one without any."""
    for number in (0, 1):
        draw(place / "images" / f"{number}.jpg", number)
    value = [
        {
            "id": "000",
            "image": "0.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "An owl."},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": "Yes."},
            ],
        },
        {
            "id": "000",
            "image": ["0.jpg", "1.jpg"],
            "conversations": [
                {"from": "human", "value": "Compare.\n<image>\n<image>"},
                {"from": "gpt", "value": "Both show an owl."},
            ],
        },
        {
            "id": "text",
            "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hello."}],
        },
    ]
    return {"annotations": write(place / "llava.json", value), "pictures": place / "images"}


def coco_detection(place: Path) -> dict[str, Path]:
    """One picture with a dog and two cats, one with a dog and a crowd of owls."""
    images = [{"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in (1, 2)]
    objects = [(1, 1, 0), (1, 2, 0), (1, 2, 0), (2, 1, 0), (2, 3, 1)]
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "bbox": [10, 10, 20, 20], "iscrowd": crowd}
        for n, (image, category, crowd) in enumerate(objects)
    ]
    categories = [{"id": n, "name": name} for n, name in enumerate(("dog", "cat", "owl"), start=1)]
    for n in (1, 2):
        draw(place / "images" / f"{n}.jpg", n)
    whole = {"images": images, "annotations": annotations, "categories": categories}
    return {"annotations": write(place / "instances_val.json", whole), "pictures": place / "images"}


VOC = """<annotation><folder>VOC</folder><filename>{name}.jpg</filename>
<size><width>80</width><height>60</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>11</ymin><xmax>40</xmax><ymax>60</ymax></bndbox></object>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>cat</name><bndbox><xmin>11</xmin><ymin>1</ymin><xmax>19</xmax><ymax>9</ymax></bndbox></object>
</annotation>
"""


def voc(place: Path) -> dict[str, Path]:
    """One picture with a dog and two cats."""
    (place / "Annotations").mkdir(parents=True)
    (place / "Annotations" / "000005.xml").write_text(VOC.format(name="000005"))
    draw(place / "JPEGImages" / "000005.jpg", 5)
    return {"annotations": place / "Annotations", "pictures": place / "JPEGImages"}


def image_folder(place: Path) -> dict[str, Path]:
    """A caption, a question with several right answers, and a statement about a pair."""
    for number in (0, 1):
        draw(place / "own" / f"{number}.png", number)
    lines = [
        {"file_name": "0.png", "text": "an owl | a bird"},
        {"file_name": "1.png", "question": "how many?", "answer": 2},
        {
            "left_file_name": "0.png",
            "right_file_name": "1.png",
            "statement": "Both are owls.",
            "answer": True,
        },
    ]
    write_lines(place / "own" / "metadata.jsonl", lines)
    return {"annotations": place / "own", "pictures": place / "own"}


def table(place: Path) -> dict[str, Path]:
    """A CSV file with captions, questions and a box."""
    for number in (0, 1):
        draw(place / "pictures" / f"{number}.png", number)
    rows = (
        "image,caption,question,answer,expression,x1,y1,x2,y2\n"
        '0.png,"an owl, in red",what is it?,owl|bird,,,,,\n'
        "1.png,,,,the heart,0.1,0.2,0.5,0.6\n"
    )
    (place / "own.csv").write_text(rows)
    return {"annotations": place / "own.csv", "pictures": place / "pictures"}


def parquet(place: Path) -> dict[str, Path]:
    """Three rows in two groups, two of them about the same picture, as bytes and as a structure of bytes and path."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    pictures = [draw(place / "drawn" / f"{number}.png", number).read_bytes() for number in (0, 1)]
    rows = [
        {
            "image": {"bytes": pictures[0], "path": None},
            "question": "what?",
            "answer": "owl",
            "caption": None,
        },
        {
            "image": {"bytes": pictures[0], "path": "x.png"},
            "question": None,
            "answer": None,
            "caption": ["an owl", "a bird"],
        },
        {
            "image": {"bytes": pictures[1], "path": None},
            "question": "how many?",
            "answer": "2",
            "caption": None,
        },
    ]
    table = pyarrow.Table.from_pylist(rows)
    (place / "data").mkdir(parents=True, exist_ok=True)
    path = place / "data" / "train-00000.parquet"
    with ParquetWriter(path, table.schema) as writer:
        writer.write_table(table, row_group_size=2)
    return {"annotations": path, "pictures": place / "data"}


def tar(path: Path, members: Mapping[str, bytes | str]) -> Path:
    """A tar with these members in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            about = tarfile.TarInfo(name)
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))
    return path


def webdataset(place: Path) -> dict[str, Path]:
    """A caption with what a crawler noted beside it, a class in a folder, and a question about a pair."""
    shown = [draw(place / "drawn" / f"{number}.png", number).read_bytes() for number in range(3)]
    noted = {"caption": "an owl | shop", "url": "x", "image": "of no use", "width": 80}
    members = {
        "000.png": shown[0],
        "000.txt": "an owl | shop\n",
        "000.json": json.dumps(noted),
        "./animals/001.cls": "7",
        "./animals/001.png": shown[1],
        "002.0.png": shown[1],
        "002.1.PNG": shown[2],
        "002.question.txt": "which is left?",
        "002.answer.txt": "the owl",
    }
    return {"annotations": tar(place / "shards" / "train-000.tar", members), "pictures": place / "shards"}


# format -> who writes it at toy size, and which of its files are the annotations
WRITERS: dict[str, tuple[Callable[[Path], dict[str, Path]], tuple[str, ...]]] = {
    "vqav2": (vqav2, ("questions", "annotations")),
    "gqa": (gqa, ("questions", "choices")),
    "coco-captions": (coco, ("annotations",)),
    "karpathy": (karpathy, ("annotations",)),
    "nlvr2": (nlvr2, ("annotations",)),
    "refcoco": (refcoco, ("refs", "instances")),
    "refcoco-lines": (refcoco_lines, ("annotations",)),
    "refcoco-mdetr": (refcoco_mdetr, ("annotations",)),
    "clevr": (clevr, ("annotations",)),
    "llava": (llava, ("annotations",)),
    "coco-detection": (coco_detection, ("annotations",)),
    "voc": (voc, ("annotations",)),
    "image-folder": (image_folder, ("annotations",)),
    "csv": (table, ("annotations",)),
    "parquet": (parquet, ("annotations",)),
    "webdataset": (webdataset, ("annotations",)),
}
