"""The works that a model builds on, chosen by what its configuration and recipe use, as BibTeX."""

from collections.abc import Mapping
from typing import Any

# key: (authors, title, journal or conference, year, arXiv)
Work = tuple[str, str, str, int, str]
PREPRINT = "arXiv preprint"
MOIR: Work = (
    "Kim, Seulgi and Prabhushankar, Mohit and AlRegib, Ghassan",
    "Information Router for Mitigating Modality Dominance in Vision-Language Models",
    PREPRINT, 2026, "2604.16264",
)  # fmt: skip
MAHALANOBIS: Work = (
    "Lee, Kimin and Lee, Kibok and Lee, Honglak and Shin, Jinwoo",
    "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    "NeurIPS", 2018, "1807.03888",
)  # fmt: skip
LION: Work = (
    "Chen, Gongwei and Shen, Leyang and Shao, Rui and Deng, Xiang and Nie, Liqiang",
    "LION: Empowering Multimodal Large Language Model with Dual-Level Visual Knowledge",
    "CVPR", 2024, "2311.11860",
)  # fmt: skip
LLAVA: Work = (
    "Liu, Haotian and Li, Chunyuan and Wu, Qingyang and Lee, Yong Jae",
    "Visual Instruction Tuning", "NeurIPS", 2023, "2304.08485",
)  # fmt: skip
LORA: Work = (
    "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean and "
    "Wang, Lu and Chen, Weizhu",
    "LoRA: Low-Rank Adaptation of Large Language Models", "ICLR", 2022, "2106.09685",
)  # fmt: skip
DORA: Work = (
    "Liu, Shih-Yang and Wang, Chien-Yi and Yin, Hongxu and Molchanov, Pavlo and Wang, Yu-Chiang Frank and "
    "Cheng, Kwang-Ting and Chen, Min-Hung",
    "DoRA: Weight-Decomposed Low-Rank Adaptation", "ICML", 2024, "2402.09353",
)  # fmt: skip
RSLORA: Work = (
    "Kalajdzievski, Damjan", "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", PREPRINT, 2023,
    "2312.03732",
)  # fmt: skip
QLORA: Work = (
    "Dettmers, Tim and Pagnoni, Artidoro and Holtzman, Ari and Zettlemoyer, Luke",
    "QLoRA: Efficient Finetuning of Quantized LLMs", "NeurIPS", 2023, "2305.14314",
)  # fmt: skip
# The backbones that the shipped recipes name, by how their Hub ids begin.
BACKBONES: dict[str, Work] = {
    "google/siglip2-": (
        "Tschannen, Michael and Gritsenko, Alexey and Wang, Xiao and Naeem, Muhammad Ferjad and others",
        "SigLIP 2: Multilingual Vision-Language Encoders with Improved Semantic Understanding, Localization, and Dense "
        "Features",
        PREPRINT, 2025, "2502.14786",
    ),
    "google/siglip-": (
        "Zhai, Xiaohua and Mustafa, Basil and Kolesnikov, Alexander and Beyer, Lucas",
        "Sigmoid Loss for Language Image Pre-Training", "ICCV", 2023, "2303.15343",
    ),
    "openai/clip-": (
        "Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and others",
        "Learning Transferable Visual Models From Natural Language Supervision", "ICML", 2021, "2103.00020",
    ),
    "facebook/dinov2-": (
        "Oquab, Maxime and Darcet, Timoth{\\'e}e and Moutakanni, Th{\\'e}o and others",
        "DINOv2: Learning Robust Visual Features without Supervision", "TMLR", 2024, "2304.07193",
    ),
    "HuggingFaceTB/SmolLM2": (
        "Ben Allal, Loubna and Lozhkov, Anton and Bakouch, Elie and others",
        "SmolLM2: When Smol Goes Big -- Data-Centric Training of a Small Language Model", PREPRINT, 2025, "2502.02737",
    ),
    "google/flan-t5-": (
        "Chung, Hyung Won and Hou, Le and Longpre, Shayne and Zoph, Barret and others",
        "Scaling Instruction-Finetuned Language Models", PREPRINT, 2022, "2210.11416",
    ),
    "sentence-transformers/all-MiniLM": (
        "Wang, Wenhui and Wei, Furu and Dong, Li and Bao, Hangbo and Yang, Nan and Zhou, Ming",
        "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
        "NeurIPS", 2020, "2002.10957",
    ),
    "google-bert/bert-": (
        "Devlin, Jacob and Chang, Ming-Wei and Lee, Kenton and Toutanova, Kristina",
        "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", "NAACL", 2019, "1810.04805",
    ),
}  # fmt: skip


def works_behind(config: Any, uses_lora: bool, recipe: Mapping[str, Any] | None = None) -> list[str]:
    """
    BibTeX entries of the works that the parts of this configuration come from, and of its backbones where they are
    known; without any, of MoIR.
    """
    works = []
    if config.router_type in ("gate", "channel"):
        works.append(MOIR)
    if config.router_type == "reliability":
        works += [MOIR, MAHALANOBIS]
    routed = config.task_adapter_rank is not None
    if config.soft_prompt_type != "none" or config.projector_type == "aggregator" or routed:
        works.append(LION)
    if config.projector_type == "mlp":
        works.append(LLAVA)
    lora = (recipe or {}).get("lora") or {}
    if uses_lora or routed:
        works += [LORA, *([DORA] if lora.get("use_dora") else []), *([RSLORA] if lora.get("use_rslora") else [])]
    if ((recipe or {}).get("model") or {}).get("quantization") == "nf4":
        works.append(QLORA)
    for name in filter(None, (config.backbones or {}).values()):
        works += [work for beginning, work in BACKBONES.items() if name.startswith(beginning)]
    return [_bibtex(work) for work in dict.fromkeys(works or [MOIR])]


def _bibtex(work: Work) -> str:
    authors, title, place, year, number = work
    key = f"{authors.partition(',')[0]}{year}{title.split()[0]}".lower()
    kind, field = ("article", "journal") if place in (PREPRINT, "TMLR") else ("inproceedings", "booktitle")
    fields = {"title": title, "author": authors, field: place, "year": year, "eprint": number, "archiveprefix": "arXiv"}
    lines = [f"  {name:<13} = {{{value}}}" for name, value in fields.items()]
    return f"@{kind}{{{''.join(c for c in key if c.isalnum())},\n" + ",\n".join(lines) + "\n}"
