# Puts the dialplan where FreeSWITCH reads it and the properties where bbb-web reads them. May be run again at any time.
# Run it from /etc/bigbluebutton/bbb-conf/apply-config.sh, which bbb-conf runs after each upgrade and before each start:
#
#   sh /etc/bigbluebutton/bbb-conf/callyard/apply.sh
#
# FREESWITCH_CONF and BBB_WEB_PROPERTIES may name other places. Prints what it changed; nothing where nothing.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
dialplan=${FREESWITCH_CONF:-/opt/freeswitch/etc/freeswitch}/dialplan/public
properties=${BBB_WEB_PROPERTIES:-/etc/bigbluebutton/bbb-web.properties}
new=

fail() {
    echo "callyard: $1" >&2
    exit 1
}

trap 'test -z "$new" || rm -f "$new"' EXIT

# --- the dialplan ---
test -d "$dialplan" || fail "there is no $dialplan: FREESWITCH_CONF must name FreeSWITCH's configuration"
if ! cmp -s "$here/00_callyard.xml" "$dialplan/00_callyard.xml"; then
    if test -e "$dialplan/00_callyard.xml" && ! grep -q '^<!-- callyard-digest: ' "$dialplan/00_callyard.xml"; then
        fail "$dialplan/00_callyard.xml is not Callyard's: move it away"
    fi
    new=$(mktemp "$dialplan/.00_callyard.XXXXXX")
    cat "$here/00_callyard.xml" > "$new"
    chmod 0644 "$new"
    # As BigBlueButton has it for the files beside: the directory belongs to freeswitch.
    chown --reference="$dialplan" "$new"
    mv -f "$new" "$dialplan/00_callyard.xml"
    echo "callyard: wrote $dialplan/00_callyard.xml (load it: fs_clibbb -x reloadxml, or restart FreeSWITCH)"
fi

# --- the properties: a block of ours at the end, where it wins over what stands before ---
if test -e "$properties"; then
    begins=$(grep -c '^# BEGIN callyard$' "$properties" || true)
    ends=$(grep -c '^# END callyard$' "$properties" || true)
    test "$begins" = "$ends" || fail "$properties has $begins '# BEGIN callyard' and $ends '# END callyard': mend it"
    new=$(mktemp "$properties.XXXXXX")
    cp -p "$properties" "$new"
    sed '/^# BEGIN callyard$/,/^# END callyard$/d' "$properties" > "$new"
    # A last line without its end would swallow ours.
    test -z "$(tail -c 1 "$new")" || echo >> "$new"
else
    new=$(mktemp "$properties.XXXXXX")
    chmod 0644 "$new"
fi
if grep -q '^[^#]' "$here/bbb-web.properties"; then
    {
        echo '# BEGIN callyard'
        grep '^[^#]' "$here/bbb-web.properties"
        echo '# END callyard'
    } >> "$new"
fi
if cmp -s "$new" "$properties" || { test ! -e "$properties" && test ! -s "$new"; }; then
    rm -f "$new"
else
    mv -f "$new" "$properties"
    echo "callyard: wrote $properties (it counts once bbb-web is restarted)"
fi
new=
