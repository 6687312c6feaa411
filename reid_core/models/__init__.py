"""Networks: what turns pixels and words into features.

backbones     any model by name: open_clip, timm, pedestrian weights; which has a text tower
weight_files  files of any origin: read, their pixels' statistics, filled in or refused
reid_weights  models that others pre-trained on pedestrians, their names translated
towers        image towers opened up, a function per family: stem, trunk, pool, projection
patches  pooling   pieces of them
encoders      the image encoder: a stem per modality, everything else shared
adaptation    how much of it learns: rates by depth, LoRA
text_tower    CLIP's text tower, from token embeddings
text_image    the text-image encoder: both towers, upright images
prompts       learnable tokens inside a fixed sentence, one row per class
"""
