"""The mathematics of cross-modality person re-identification: no Ray, no process group.

types        what a record, a split and a batch are, and the legend of shape letters
datasets     read(root) -> Dataset for each layout; `synthetic` draws identities
transforms   decoded images -> augmented uint8 batches
sampling     PxK epoch plans
models       CLIP towers with two stems, prompts
clustering   k-reciprocal Jaccard graph, DBSCAN, centroids
matching     Hungarian pairs of two banks        memory   cluster banks and their swap
losses       functions only                       metrics  CMC, AP, INP
protocols    who is query, gallery, ignored       optim    parameter groups, schedules
methods      one paper, one file
"""
