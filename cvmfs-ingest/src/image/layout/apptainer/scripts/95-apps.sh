#!/bin/sh
# The application that was chosen, as the Scientific Filesystem has it.
if [ -n "${SINGULARITY_APPNAME:-}" ]; then
    SCIF_APPS=/scif/apps
    SCIF_DATA=/scif/data
    SCIF_APPNAME=$SINGULARITY_APPNAME
    SCIF_APPROOT=$SCIF_APPS/$SCIF_APPNAME
    SCIF_APPMETA=$SCIF_APPROOT/scif
    SCIF_APPDATA=$SCIF_DATA/$SCIF_APPNAME
    SCIF_APPINPUT=$SCIF_APPDATA/input
    SCIF_APPOUTPUT=$SCIF_APPDATA/output
    export SCIF_APPS SCIF_DATA SCIF_APPNAME SCIF_APPROOT SCIF_APPMETA SCIF_APPDATA SCIF_APPINPUT SCIF_APPOUTPUT
    if [ -d "$SCIF_APPROOT/bin" ]; then
        PATH=$SCIF_APPROOT/bin:${PATH:-}
        export PATH
    fi
    if [ -d "$SCIF_APPROOT/lib" ]; then
        LD_LIBRARY_PATH=$SCIF_APPROOT/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        export LD_LIBRARY_PATH
    fi
    for SCIF_FILE in "$SCIF_APPMETA/env/01-base.sh" "$SCIF_APPMETA/env/90-environment.sh"; do
        if [ -f "$SCIF_FILE" ]; then
            . "$SCIF_FILE"
        fi
    done
fi
