"""Chinese text as it is spoken: numbers, dates, money and telephone numbers in characters.

What the authors' evaluation does with Chinese: the rules, and their order, of speechio's
chinese_text_normalization with all of its options off. Known quirks are kept, since the numbers
depend on them: each match replaces the first place in the text that reads like it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

_DIGITS = "零一二三四五六七八九"
_UNITS = [(44, "载"), (40, "正"), (36, "涧"), (32, "沟"), (28, "穰"), (24, "秭"), (20, "垓"),
          (16, "京"), (12, "兆"), (8, "亿"), (4, "万"), (3, "千"), (2, "百")]  # fmt: skip
_UNITS.append((1, "十"))
"""Powers of ten that have a character, the largest first."""
_LARGE = "亿|千万|百万|万|千|百"
_CURRENCY = f"(?:{_LARGE}|(?:{_LARGE}|)元|(?:{_LARGE}|)块|角|毛|分)"
_MEASURES = (
    "匹 张 座 回 场 尾 条 个 首 阙 阵 网 炮 顶 丘 棵 只 支 袭 辆 挑 担 颗 壳 窠 曲 墙 群 腔 "
    "砣 客 贯 扎 捆 刀 令 打 手 罗 坡 山 岭 江 溪 钟 队 单 双 对 出 口 头 脚 板 跳 枝 件 贴 "
    "针 线 管 名 位 身 堂 课 本 页 家 户 层 丝 毫 厘 分 钱 两 斤 铢 石 钧 锱 忽 千克 毫克 "
    "微克 寸 尺 丈 里 寻 常 铺 程 千米 分米 厘米 毫米 微米 撮 勺 合 升 斗 盘 碗 碟 叠 桶 笼 "
    "盆 盒 杯 斛 锅 簋 篮 罐 瓶 壶 卮 盏 箩 箱 煲 啖 袋 钵 年 月 日 季 刻 时 周 天 秒 旬 纪 "
    "岁 世 更 夜 春 夏 秋 冬 代 伏 辈 丸 泡 粒 幢 堆 根 道 面 片 块"
).split()
_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏·〈〉-" + string.punctuation
)
_TO_SPACES = str.maketrans(dict.fromkeys(_PUNCTUATION, " "))

_NUMBER = r"\d+(?:\.\d+)?"
_RULES: list[tuple[str, Callable[[str], str]]] = [
    (
        r"\D+((?:(?:[089]\d|(?:19|20)\d{2})年)?(?:\d{1,2}月(?:\d{1,2}[日号])?)?)",
        lambda text: re.sub(
            r"(\d+)(.)",
            lambda m: (_digits if m[2] == "年" else _cardinal)(m[1]) + m[2],
            text,
        ),
    ),
    (
        rf"\D+({_NUMBER}[多余几]?{_CURRENCY}(?:\d{_CURRENCY}?)?)",
        lambda text: _numbers(text),
    ),
    (
        r"\D((?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8})\D",
        lambda text: "".join(map(_digits, text.strip("+").split())),
    ),
    (
        r"\D((?:0(?:10|2[1-3]|[3-9]\d{2})-?)?[1-9]\d{6,7})\D",
        lambda text: "".join(map(_digits, text.split("-"))),
    ),
    (r"(\d+/\d+)", lambda text: "分之".join(map(_cardinal, reversed(text.split("/"))))),
    (rf"({_NUMBER}%)", lambda text: "百分之" + _cardinal(text.strip("%"))),
    (rf"({_NUMBER})[多余几]?(?:{'|'.join(_MEASURES)})", lambda text: _cardinal(text)),
    (r"(\d{4,32})", lambda text: _digits(text)),
    (rf"({_NUMBER})", lambda text: _cardinal(text)),
    (r"([a-zA-Z]+二[a-zA-Z]+)", lambda text: text.replace("二", "2", 1)),
]


def normalize_chinese(text: str) -> str:
    """Numbers in characters, and spaces for punctuation."""
    text = f"^{text}$"
    for pattern, spoken in _RULES:
        if "%" in pattern:
            text = text.replace("％", "%")
        for match in [m[1] for m in re.finditer(pattern, text)]:
            text = text.replace(match, spoken(match), 1)
    return text.lstrip("^").rstrip("$").translate(_TO_SPACES)


def _digits(number: str) -> str:
    """2008 as 二零零八."""
    return "".join(_DIGITS[int(digit)] for digit in number)


def _cardinal(number: str) -> str:
    """2008 as 两千零八, 3.14 as 三点一四."""
    whole, point, fraction = number.partition(".")
    symbols = _symbols(whole) if len(whole) > 1 else [_DIGITS[int(whole)]]
    symbols = [_liang(symbols, i) for i in range(len(symbols))]
    if point and fraction:
        symbols += ["点", *_digits(fraction)]
    text = "".join(symbols)
    if text.startswith("点"):
        return "零" + text
    return text[1:] if text.startswith("一十") else text


def _symbols(number: str, has_zero: bool = True) -> list[str]:
    """The characters of a whole number, those of its units apart from its digits."""
    stripped = number.lstrip("0")
    if len(stripped) < 2:
        zero = ["零"] if stripped and len(number) > 1 and has_zero else []
        return [*zero, *(_DIGITS[int(d)] for d in stripped)]
    power, unit = next(u for u in _UNITS if u[0] < len(stripped))
    return [*_symbols(number[:-power]), unit, *_symbols(stripped[-power:])]


def _liang(symbols: list[str], i: int) -> str:
    """两 for a 2 that counts hundreds or more."""
    units = [unit for _, unit in _UNITS]
    if symbols[i] != "二" or i + 1 == len(symbols) or symbols[i + 1] not in units[:-1]:
        return symbols[i]
    is_first = i == 0 or symbols[i - 1] in units[:-1]
    return "两" if is_first else "二"


def _numbers(text: str) -> str:
    """An amount of money."""
    for number in re.findall(_NUMBER, text):
        text = text.replace(number, _cardinal(number))
    return text
