"""Languages of a tokenizer that has codes for them (mBART, NLLB, M2M)."""

from __future__ import annotations

from typing import Any

from tunesmith.errors import InputError, did_you_mean
from tunesmith.registry import Decision
from tunesmith.tasks.seq2seq.rows import find_language
from tunesmith.tasks.seq2seq.section import LANGUAGES, Seq2SeqSpec


def language_codes(tokenizer: Any) -> list[str]:
    """The languages that the tokenizer puts codes for to a text; none for most."""
    if not hasattr(tokenizer, "src_lang"):
        return []
    return list(getattr(tokenizer, "lang_code_to_id", None) or tokenizer.extra_special_tokens)


def set_languages(section: Seq2SeqSpec, tokenizer: Any) -> list[str]:
    """Tells a tokenizer with codes its two languages, and returns these codes.

    Raises InputError with a language that is not said, or that the tokenizer does not have.
    """
    codes = language_codes(tokenizer)
    if not codes:
        return []
    chosen = []
    for field in LANGUAGES:
        language = getattr(section, field)
        if language == "auto":
            problem = "the tokenizer knows many languages, and the rows do not say theirs"
            raise InputError("spec.undecided", problem, where=f"task.{field}", fix=did_you_mean("", codes))
        code = find_language(language, codes)
        if code is None:
            raise InputError(
                "spec.value", "the tokenizer has no such language", where=f"task.{field}", found=language, fix=did_you_mean(language, codes)
            )
        chosen.append(code)
    tokenizer.src_lang, tokenizer.tgt_lang = chosen
    return chosen


def fit_languages(section: Seq2SeqSpec, tokenizer: Any, model: Any) -> list[Decision]:
    """Tells the tokenizer its languages, and the model which token it must write first.

    Raises InputError as `set_languages` does, and when a language is said that neither rows nor tokenizer have.
    """
    chosen = set_languages(section, tokenizer)
    if not chosen:
        said = {field: getattr(section, field) for field in LANGUAGES if getattr(section, field) not in ("auto", "none")}
        if said and not section._rows_have_languages:
            shown = ", ".join(f"{field}: {language}" for field, language in said.items())
            problem = "neither the rows nor the tokenizer have languages"
            fix = "leave it out; a prefix may say the language: task.prefix='translate English to German: '"
            raise InputError("spec.no_effect", problem, where=f"task.{next(iter(said))}", found=shown, fix=fix)
        return [
            Decision(f"task.{field}", "none", "neither the rows nor the tokenizer have languages")
            for field in LANGUAGES
            if field not in said
        ]
    labels = tokenizer(text_target=["a"])["input_ids"][0]
    ids = getattr(tokenizer, "lang_code_to_id", None) or {chosen[1]: tokenizer.convert_tokens_to_ids(chosen[1])}
    # Where the code is learnt as the first token, it is written first too.
    model.generation_config.forced_bos_token_id = ids[chosen[1]] if labels[0] == ids[chosen[1]] else None
    return [Decision("language codes", f"{chosen[0]} -> {chosen[1]}", "those of the tokenizer; what is written begins with the target's")]
