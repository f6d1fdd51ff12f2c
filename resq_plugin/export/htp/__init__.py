"""Qualcomm's HTP: both graphs in the integers it has, compiled by its compiler, played on it or its emulation."""
