#!/bin/sh
# Libraries that the host brings in come last.
LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs
PS1='Singularity> '
export LD_LIBRARY_PATH PS1
