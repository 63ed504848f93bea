#!/bin/sh
# Nothing to set before the image does.
