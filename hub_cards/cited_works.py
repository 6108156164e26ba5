"""The works that a model builds on, chosen by what its configuration uses, as BibTeX."""

from typing import Any

MOIR = """\
@article{kim2026moir,
  title   = {Information Router for Mitigating Modality Dominance in Vision-Language Models},
  author  = {Kim, Seulgi and Prabhushankar, Mohit and AlRegib, Ghassan},
  journal = {arXiv preprint arXiv:2604.16264},
  year    = {2026}
}"""
LION = """\
@inproceedings{chen2024lion,
  title     = {LION: Empowering Multimodal Large Language Model with Dual-Level Visual Knowledge},
  author    = {Chen, Gongwei and Shen, Leyang and Shao, Rui and Deng, Xiang and Nie, Liqiang},
  booktitle = {CVPR},
  note      = {arXiv:2311.11860},
  year      = {2024}
}"""
LLAVA = """\
@inproceedings{liu2023llava,
  title     = {Visual Instruction Tuning},
  author    = {Liu, Haotian and Li, Chunyuan and Wu, Qingyang and Lee, Yong Jae},
  booktitle = {NeurIPS},
  note      = {arXiv:2304.08485},
  year      = {2023}
}"""
MAHALANOBIS = """\
@inproceedings{lee2018simple,
  title     = {A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks},
  author    = {Lee, Kimin and Lee, Kibok and Lee, Honglak and Shin, Jinwoo},
  booktitle = {NeurIPS},
  note      = {arXiv:1807.03888},
  year      = {2018}
}"""
LORA = """\
@inproceedings{hu2022lora,
  title     = {LoRA: Low-Rank Adaptation of Large Language Models},
  author    = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and
               Wang, Shean and Wang, Lu and Chen, Weizhu},
  booktitle = {ICLR},
  note      = {arXiv:2106.09685},
  year      = {2022}
}"""


def works_behind(config: Any, uses_lora: bool) -> list[str]:
    """BibTeX entries of the works that the parts of this configuration come from; without any, of MoIR."""
    works = []
    if config.router_type in ("gate", "channel"):
        works.append(MOIR)
    if config.router_type == "reliability":
        works += [MOIR, MAHALANOBIS]
    if config.soft_prompt_type != "none" or config.projector_type == "aggregator":
        works.append(LION)
    if config.projector_type == "mlp":
        works.append(LLAVA)
    if uses_lora:
        works.append(LORA)
    return works or [MOIR]
