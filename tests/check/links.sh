#!/bin/sh
# Every file that a README names in code marks, with a folder or an ending, exists.
set -u
cd "${1:?the repository root}"
bad=0
for page in README.md */README.md engine/*.md kernels/*.md; do
    [ -f "$page" ] || continue
    folder=$(dirname "$page")
    for name in $(grep -oE '`[A-Za-z0-9_./-]+\.(c|h|md|py|sh|html|js|css|json)`' "$page" | tr -d '`' | sort -u); do
        # Names of files in a checkpoint are no files of ours.
        case $name in config.json | *tokenizer*.json | generation_config.json | *index.json | special_tokens_map.json | settings.json | layer_errors.json | sensitivities.json) continue ;; esac
        [ -e "$folder/$name" ] || [ -e "$name" ] || {
            echo "not ok - $page names $name, which does not exist"
            bad=1
        }
    done
done
[ $bad = 0 ] && echo "ok - files named in documents exist"
exit $bad
