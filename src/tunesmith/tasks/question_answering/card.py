"""Python for the model card: transformers 5 has no pipeline for this task."""

from __future__ import annotations

from tunesmith.tasks.question_answering.section import QuestionAnsweringSpec

CODE = '''
{imports}import torch
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
{threshold}


def answer(question, context):
    """The answer and where it begins and ends in the context; ("", None, None) where there is none."""
    windows = tokenizer(
        question, context, truncation="only_second", max_length={max_length}, stride={stride}, padding=True, padding_side="right",
        return_overflowing_tokens=True, return_offsets_mapping=True, return_tensors="pt",
    )
    offsets, _ = windows.pop("offset_mapping"), windows.pop("overflow_to_sample_mapping")
    with torch.inference_mode():
        outputs = model.eval()(**windows.to(model.device))
    best, found, none = -torch.inf, ("", None, None), torch.inf
    for index, (start, end) in enumerate(zip(outputs.start_logits.float().cpu(), outputs.end_logits.float().cpu())):
        outside = torch.tensor([part != 1 for part in windows.sequence_ids(index)])
        scores = start.masked_fill(outside, -torch.inf)[:, None] + end.masked_fill(outside, -torch.inf)
        scores = scores.masked_fill(torch.ones_like(scores).triu().tril({longest} - 1) == 0, -torch.inf)
        first, last = divmod(int(scores.argmax()), len(end))
        if scores[first, last] > best:
            best, span = float(scores[first, last]), (int(offsets[index, first, 0]), int(offsets[index, last, 1]))
            found = context[slice(*span)], *span
        ids = windows["input_ids"][index].tolist()
        at = next((ids.index(token) for token in (tokenizer.cls_token_id, tokenizer.bos_token_id) if token in ids), 0)
        none = min(none, float(start[at] + end[at]))
    return found if threshold is None or none - best <= threshold else ("", None, None)
'''
TUNED = """
tuned = Path(folder) / "thresholds.json"  # what was best on the validation set
threshold = json.loads(tuned.read_text())["thresholds"][0] if tuned.exists() else 0.0
""".strip()


def usage(section: QuestionAnsweringSpec) -> str:
    """A function that answers as `predict` does."""
    threshold, imports = section.null_score_diff_threshold, ""
    said = f"threshold = {None if threshold == 'none' else threshold}"
    if threshold == "validation":
        imports, said = "import json\nfrom pathlib import Path\n\n", TUNED
    values = {"max_length": section.max_length, "stride": section.stride, "longest": section.max_answer_length}
    return CODE.format(imports=imports, threshold=said, **values)
