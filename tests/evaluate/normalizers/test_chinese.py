"""Chinese numbers as they are spoken: what speechio's chinese_text_normalization gives."""

from __future__ import annotations

import pytest

from qa_jax.evaluate.normalizers.chinese import normalize_chinese


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2008年8月8日", "二零零八年八月八日"),
        ("08年10月", "零八年十月"),
        ("10块", "十块"),
        ("200元和250米", "两百元和两百五十米"),
        ("22个", "二十二个"),
        ("20222", "二零二二二"),
        ("3.14", "三点一四"),
        ("1/3", "三分之一"),
        ("62％", "百分之六十二"),
        ("13812345678。", "一三八一二三四五六七八 "),
        ("电话010-62345678。", "电话零一零六二三四五六七八 "),
        ("100200元", "十万零二百元"),
        ("O二O", "O2O"),
        ("你好，世界！", "你好 世界 "),
        ("2200年前", "两千两百年前"),
        ("0.5", "零点五"),
        ("20000人", "二零零零零人"),
        ("", ""),
    ],
)
def test_known_texts(text: str, expected: str) -> None:
    assert normalize_chinese(text) == expected
