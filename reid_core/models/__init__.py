"""Networks: what turns pixels and words into features.

clip      loads any open_clip model and opens it up; the only file that knows CLIP's insides
encoders  the two-stem image encoder: one stem per modality, shared trunk, GeM, neck
prompts   learnable tokens inside a fixed sentence, one row per class
"""
