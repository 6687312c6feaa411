"""CSDN: supervised visible-infrared re-identification."""
