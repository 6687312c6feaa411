"""CPCL: weakly supervised text-image re-identification."""
