"""How the page looks, and what gradio's slider lacks: names of its pictures, and a line that keys move."""

from __future__ import annotations

CSS = """
main.fillable { max-width: 1180px !important; }
.told { font-size: 1.05rem; margin: 0; padding: .6rem .9rem; border-radius: 6px; border-left: 4px solid #64748b;
  background: var(--background-fill-secondary); color: var(--body-text-color); }
.told[role=alert] { border-left-color: #dc2626; }
.told.done { border-left-color: #15803d; }
.report table { width: 100%; border-collapse: collapse; margin-top: .6rem; }
.report table, .report tr, .report th, .report td { border: 0 !important; }
.report caption { text-align: left; padding-bottom: .3rem; color: var(--body-text-color); }
.report th, .report td { text-align: left; font-weight: normal; padding: .2rem .6rem .2rem 0; }
.report th { width: 34%; }
.report meter { width: 9rem; max-width: 55%; vertical-align: middle; margin-right: .5rem; }
:focus-visible { outline: 3px solid #2563eb !important; outline-offset: 2px; }
"""

# The line follows a drag alone, so keys drag it: down, move, up.
SCRIPT = """<script>
(() => {
  const names = {"before.jpg": "before", "after.jpg": "restored", "preview.jpg": "your picture"};
  const complete = () => {
    for (const image of document.querySelectorAll("img[alt='']")) {
      const name = names[image.src.split("/").pop()];
      if (name) image.alt = name;
    }
    const line = document.querySelector("#slider [data-testid=slider]:not([role=slider])");
    if (!line) return;
    const marks = {role: "slider", tabindex: 0, "aria-label": "Line between before (left) and restored (right)",
      "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 50};
    for (const [key, value] of Object.entries(marks)) line.setAttribute(key, value);
    line.addEventListener("keydown", (event) => {
      const picture = line.parentElement.querySelector("img").getBoundingClientRect();
      const box = line.getBoundingClientRect();
      const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
      const step = picture.width / 20;
      const to = {ArrowLeft: x - step, ArrowDown: x - step, ArrowRight: x + step, ArrowUp: x + step,
        Home: picture.left, End: picture.right}[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const aim = Math.min(Math.max(to, picture.left), picture.right);
      const send = (target, kind, clientX) => target.dispatchEvent(
        new MouseEvent(kind, {clientX, clientY: y, view: window, bubbles: true, cancelable: true}));
      send(line, "mousedown", x);
      send(window, "mousemove", aim);
      send(window, "mouseup", aim);
      line.setAttribute("aria-valuenow", Math.round((aim - picture.left) / picture.width * 100));
    });
  };
  new MutationObserver(complete).observe(document, {childList: true, subtree: true, attributeFilter: ["src"]});
})();
</script>"""
