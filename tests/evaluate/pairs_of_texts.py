"""Pairs of a reference and an answer with errors, a thousand a language, the same on every machine.

What the authors' evaluation says of them is in `GOLDEN`: corpus WER of `compute_wer` after
`remove_sp`, of eval_audio/evaluate_asr.py at 595360e, run on these pairs with zhconv 1.4.3 and the
normalizers of openai/whisper.
"""

from __future__ import annotations

import random

NUM_PAIRS = 1000
LANGUAGES = ("en", "zh", "yue", "fr")

_WORDS = {
    "en": (
        "the a of and because cause won't can't it's he'd they've I'm uh um mhm mr. Mrs. dr. "
        "colour theatre grey cafe naïve twenty three hundred one first second oh zero point "
        "five 5 3.50 $20 €7 10% percent half-hour B.B.C. re-read (laughs) [noise] house white "
        "rabbit sleeps river"
    ),
    "zh": (
        "今天 天气 很好 我们 去 公园 二零零八年8月8日 2008年 3月 15号 100元 3.5% 1/2 12345 "
        "一百 25个 人 13812345678 010-62345678 两千 三万 5块 7.8米 O二O 第3名 ，。 ！ “你好” "
        "第一 20多岁 0.5 600万"
    ),
    "yue": (
        "佢 喺 邊度 我哋 今日 去 飲茶 嘅 唔該 點樣 香港 電腦 開發 團隊 買餸 睇戲 ，。 ？ 3 個 "
        "識 講 廣東話"
    ),
    "fr": (
        "le la les l'été où ça déjà c'est aujourd'hui français œuvre être là-bas 3 vingt deux "
        "«oui» Noël garçon même naïf ! ? , ; petit chat dort"
    ),
}
_JOINED = {"zh": "", "yue": "", "en": " ", "fr": " "}

GOLDEN = {
    "en": 0.1871624938635248,
    "zh": 0.17586037178662023,
    "yue": 0.16629132510584632,
    "fr": 0.18129692832764505,
}


def pairs(language: str) -> list[tuple[str, str]]:
    """References, and answers in which a sixth of the words is another, missing or twice."""
    rng = random.Random(f"pairs {language}")
    words, joined = _WORDS[language].split(), _JOINED[language]
    found = []
    for _ in range(NUM_PAIRS):
        reference = [rng.choice(words) for _ in range(rng.randint(1, 14))]
        answer = []
        for word in reference:
            kind = rng.random()
            answer += [word] if kind > 1 / 6 else [[], [word, word], [rng.choice(words)]][
                int(18 * kind)
            ]  # fmt: skip
        text = joined.join(answer)
        if rng.random() < 0.3:
            text = text.upper()
        if rng.random() < 0.3:
            text = f"<|{language}|>{text}."
        found.append((joined.join(reference), text))
    return found
