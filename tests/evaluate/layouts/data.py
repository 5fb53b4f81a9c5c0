"""Small data in the layout of each benchmark, with synthetic speech."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from qa_jax.config import SAMPLE_RATE
from qa_jax.demo.synthetic import Voice, speak

SENTENCES = (
    "the white rabbit sleeps on the river",
    "it costs twenty dollars",
    "mister brown won't come",
    "a dog barks",
)
CHINESE = ("今天是2008年8月8日", "我有3.5元", "你好，世界", "二十个人")


class Clips:
    """Spoken sentences, copied to where a layout has them; a .mp3 is one."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        for i, sentence in enumerate(SENTENCES):
            voice = Voice("f2" if i % 2 else "m3", 300)
            waveform = np.asarray(speak(sentence, voice))[: int(1.2 * SAMPLE_RATE)]
            for suffix in ("wav", "flac", "mp3"):
                soundfile.write(directory / f"{i}.{suffix}", waveform, SAMPLE_RATE)

    def put(self, index: int, path: Path) -> None:
        """Copies a clip, in the format of the path's suffix."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._directory / f"{index % len(SENTENCES)}{path.suffix}", path)

    def cell(self, index: int) -> dict[str, Any]:
        """A clip in a dataset's row."""
        file = self._directory / f"{index % len(SENTENCES)}.wav"
        return {"bytes": file.read_bytes(), "path": file.name}


def table(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def parquet(directory: Path, rows: Sequence[dict[str, Any]]) -> None:
    import datasets

    directory.mkdir(parents=True, exist_ok=True)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    found = datasets.Dataset.from_dict(columns)
    if "audio" in columns:
        found = found.cast_column("audio", datasets.Audio(decode=False))
    found.to_parquet(str(directory / "test.parquet"))


def librispeech(root: Path, clips: Clips) -> None:
    for subset in ("dev-clean", "dev-other", "test-clean", "test-other"):
        for speaker in ("61", "121"):
            chapter = root / subset / speaker / "70"
            names = [f"{speaker}-70-{i:04d}" for i in range(2)]
            for i, name in enumerate(names):
                clips.put(i, chapter / f"{name}.flac")
            lines = [f"{name} {SENTENCES[i].upper()}\n" for i, name in enumerate(names)]
            (chapter / f"{speaker}-70.trans.txt").write_text("".join(lines))


def aishell2(root: Path, clips: Clips) -> None:
    for device in ("Mic", "iOS", "Android"):
        test = root / device / "test"
        names = [f"IT0011W000{i}" for i in range(3)]
        for i, name in enumerate(names):
            clips.put(i, test / "wav" / "T0055" / f"{name}.wav")
        scp = "".join(f"{name}\twav/T0055/{name}.wav\n" for name in names)
        (test / "wav.scp").write_text(scp)
        texts = "".join(f"{n}\t{t}\n" for n, t in zip(names, CHINESE, strict=False))
        (test / "trans.txt").write_text(texts)


def common_voice(root: Path, clips: Clips) -> None:
    for language, texts in (("en", SENTENCES), ("zh-CN", CHINESE), ("yue", CHINESE),
                            ("fr", ("L'été, c'est là.", 'Il dit "oui"'))):  # fmt: skip
        rows = []
        for i, text in enumerate(texts[:2]):
            name = f"common_voice_{language}_{i}.mp3"
            clips.put(i, root / language / "clips" / name)
            rows.append(f"{'ab' * 64}\t{name}\t{text}\t2\t0\t\t\t\t\t{language}\t\n")
        header = (
            "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\t"
            "locale\tsegment\n"
        )
        (root / language / "test.tsv").write_text(header + "".join(rows), encoding="utf-8")


def fleurs(root: Path, clips: Clips) -> None:
    directory = root / "cmn_hans_cn"
    lines = []
    for i, text in enumerate(CHINESE):
        clips.put(i, directory / "audio" / "test" / f"{100 + i}.wav")
        # One sentence is read by two speakers.
        lines.append(f"{1 + i // 2}\t{100 + i}.wav\t{text}\t{text}\t|\t9600\tFEMALE\n")
    (directory / "test.tsv").write_text("".join(lines), encoding="utf-8")


def covost2(root: Path, clips: Clips) -> None:
    for source, target in (("en", "de"), ("de", "en"), ("en", "zh-CN"), ("zh-CN", "en"),
                           ("es", "en"), ("fr", "en"), ("it", "en")):  # fmt: skip
        rows = []
        for i in range(3):
            name = f"common_voice_{source}_{i}.mp3"
            clips.put(i, root / source / "clips" / name)
            translation = CHINESE[i] if target == "zh-CN" else SENTENCES[i]
            rows.append(
                {"path": name, "sentence": SENTENCES[i], "translation": translation,
                 "client_id": "cd" * 64}
            )  # fmt: skip
        table(root / source / f"covost_v2.{source}_{target}.test.tsv", rows, "\t")


def meld(root: Path, clips: Clips) -> None:
    rows = []
    for i, emotion in enumerate(("neutral", "joy", "anger", "neutral")):
        clips.put(i, root / "output_repeated_splits_test" / f"dia{i // 2}_utt{i % 2}.wav")
        rows.append(
            {"Sr No.": i + 1, "Utterance": "Oh, my God!", "Speaker": "Rachel", "Emotion": emotion,
             "Sentiment": "neutral", "Dialogue_ID": i // 2, "Utterance_ID": i % 2}
        )  # fmt: skip
    table(root / "test_sent_emo.csv", rows)


def vocalsound(root: Path, clips: Clips) -> None:
    kinds = [
        ("/m/01j3sz", "laughter", "Laughter"),
        ("/m/07plz5l", "sigh", "Sigh"),
        ("/m/01b_21", "cough", "Cough"),
        ("/m/0dl9sf8", "throatclearing", "Throat clearing"),
    ]
    data = []
    for i, (mid, kind, _) in enumerate(kinds):
        name = f"f{2641 + i}_0_{kind}.wav"
        clips.put(i, root / "audio_16k" / name)
        data.append({"wav": f"/somewhere/else/{name}", "labels": mid})
    (root / "datafiles").mkdir()
    (root / "datafiles" / "te.json").write_text(json.dumps({"data": data}))
    labels = [{"index": i, "mid": m, "display_name": d} for i, (m, _, d) in enumerate(kinds)]
    table(root / "class_labels_indices_vs.csv", labels)


def air_bench_chat(root: Path, clips: Clips) -> None:
    tasks = (
        *("speech_QA", "speech_dialogue_QA", "sound_QA", "sound_generation_QA", "music_QA"),
        *("music_generation_analysis_QA", "speech_and_sound_QA", "speech_and_music_QA"),
    )
    rows = []
    for i, task in enumerate(tasks):
        clips.put(i, root / "Chat" / f"{task}_data" / f"{i}.wav")
        rows.append(
            {"path": f"{i}.wav", "question": "What is it?", "meta_info": "a {dog} XQuestionX",
             "answer_gt": "A dog.", "task_name": task, "dataset_name": "data", "uniq_id": i}
        )  # fmt: skip
    (root / "Chat" / "Chat_meta.json").write_text(json.dumps(rows))


def air_bench_foundation(root: Path, clips: Clips) -> None:
    from qa_jax.evaluate import load_benchmark

    rows = []
    for i, subset in enumerate(load_benchmark("air_bench_foundation").subsets):
        task, _, dataset = subset.rpartition("_")
        for known in ("common_voice_13.0_en", "common_voice_13_en", "fake_or_real", "music_avqa"):
            if subset.endswith(known):
                task, dataset = subset[: -len(known) - 1], known
        path = f"{i}.wav"
        # The meta file says .wav; the clips of this task are .flac.
        suffix = "flac" if task == "Audio_Grounding" else "wav"
        clips.put(i, root / "Foundation" / f"{task}_{dataset}" / f"{i}.{suffix}")
        row = {"path": path, "question": "Which?", "choice_a": "rain", "choice_b": "wind"}
        row |= {"answer_gt": "wind", "task_name": task, "dataset_name": dataset, "uniq_id": i}
        if i % 2:
            row |= {"choice_c": "fire", "choice_d": None}
        rows.append(row)
    (root / "Foundation" / "Foundation_meta.json").write_text(json.dumps(rows))


def mmau(root: Path, clips: Clips) -> None:
    rows = []
    for i, task in enumerate(("sound", "music", "speech", "speech")):
        clips.put(i, root / "test-mini-audios" / f"{i}.wav")
        rows.append(
            {"id": f"id-{i}", "audio_id": f"./test-mini-audios/{i}.wav", "question": "What is it?",
             "choices": ["A dog", "A cat", "A man {x}"], "answer": "A cat", "dataset": "data",
             "task": task, "split": "test-mini", "category": "c", "sub-category": "s",
             "difficulty": "easy"}
        )  # fmt: skip
    (root / "mmau-test-mini.json").write_text(json.dumps(rows))


def mmar(root: Path, clips: Clips) -> None:
    rows = []
    for i, modality in enumerate(("sound", "music", "speech", "mix-sound-music", "mix-sound-speech",
                                  "mix-music-speech", "mix-sound-music-speech")):  # fmt: skip
        clips.put(i, root / "audio" / f"{i}.wav")
        rows.append(
            {"id": f"BV{i}", "audio_path": f"./audio/{i}.wav", "question": "Who?",
             "choices": ["a man", "a woman"], "answer": "a man", "modality": modality,
             "category": "Semantic Layer", "sub-category": "Speaker Analysis", "language": "en"}
        )  # fmt: skip
    (root / "MMAR-meta.json").write_text(json.dumps(rows))


def mmau_pro(root: Path, clips: Clips) -> None:
    rows = []
    for i, category in enumerate(("sound", "multi", "open", "instruction following")):
        clips.put(i, root / "data" / f"{i}.wav")
        rows.append(
            {"id": f"p{i}", "audio_path": ["data/0.wav", "data/1.wav"] if i == 1 else
             [f"data/{i}.wav"], "question": "What is heard?", "answer": "a bell",
             "choices": None if category == "open" else ["a bell", "a horn"],
             "category": category, "length_type": "short"}
        )  # fmt: skip
    parquet(root, rows)


def voicebench(root: Path, clips: Clips) -> None:
    for subset in ("alpacaeval_full", "commoneval", "wildvoice", "sd-qa", "mmsu", "openbookqa",
                   "bbh", "ifeval", "advbench"):  # fmt: skip
        rows = []
        for i in range(2):
            row = {"audio": clips.cell(i), "prompt": SENTENCES[i]}
            if subset in ("sd-qa", "mmsu", "openbookqa", "bbh"):
                row["reference"] = "B" if subset in ("mmsu", "openbookqa") else "yes"
            rows.append(row)
        parquet(root / subset, rows)


def openaudiobench(root: Path, clips: Clips) -> None:
    from qa_jax.evaluate import load_benchmark

    for subset, settings in load_benchmark("openaudiobench").subsets.items():
        rows = []
        for i in range(2):
            clips.put(i, root / subset / "audios" / f"{i}.wav")
            row = {settings["question"]: "Who wrote it?", "audio_filename": f"{i}.wav"}
            if settings["reference"]:
                row[settings["reference"]] = "Jane Austen"
            rows.append(row)
        table(root / subset / f"{subset}.csv", rows)


def open_asr(root: Path, clips: Clips) -> None:
    for subset in ("ami", "earnings22", "gigaspeech", "librispeech-clean", "librispeech-other",
                   "spgispeech", "tedlium", "voxpopuli"):  # fmt: skip
        rows = [
            {"audio": clips.cell(i), "text": SENTENCES[i], "id": f"{subset}-{i}"} for i in range(2)
        ]
        parquet(root / subset, rows)


WRITERS: dict[str, Callable[[Path, Clips], None]] = {
    "librispeech": librispeech,
    "aishell2": aishell2,
    "common_voice_15": common_voice,
    "fleurs": fleurs,
    "covost2": covost2,
    "meld": meld,
    "vocalsound": vocalsound,
    "air_bench_chat": air_bench_chat,
    "air_bench_foundation": air_bench_foundation,
    "mmau": mmau,
    "mmar": mmar,
    "mmau_pro": mmau_pro,
    "voicebench": voicebench,
    "openaudiobench": openaudiobench,
    "open_asr": open_asr,
}
"""By the name of the recipe."""
