#!/bin/sh
# Variables of your own can be set here.
