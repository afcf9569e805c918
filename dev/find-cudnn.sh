#!/bin/sh
# Prints the folder of cuDNN's header: the toolkit's own, the system's, or that of NVIDIA's Python package; nothing where
# there is none.
#
#     dev/find-cudnn.sh CUDA_FOLDER
for folder in "$1/include" /usr/include /usr/include/x86_64-linux-gnu /usr/include/aarch64-linux-gnu; do
    if [ -f "$folder/cudnn.h" ]; then
        echo "$folder"
        exit
    fi
done
python3 - 2>/dev/null <<'END'
import importlib.util, os
spec = importlib.util.find_spec("nvidia.cudnn")
for place in spec.submodule_search_locations if spec else []:
    if os.path.exists(os.path.join(place, "include", "cudnn.h")):
        print(os.path.join(place, "include"))
        break
END
exit 0
