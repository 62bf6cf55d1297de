"use strict";
// What the pages cannot do alone: load rows when they come near, decide by single keys, keep the focus. Without it every
// page and form still works, but for rows beyond the first hundred.
(() => {
  const NEAR = "1500px 0px";
  const KEYS_OFF = "fieldmark-keys-off";

  // Rows: each hundred has its height from the beginning, so that the scroll bar tells the truth, and is filled when it
  // comes near.
  function watch(root) {
    const blocks = root.querySelectorAll(".block[data-rows]");
    if (!blocks.length) return;
    const first = document.querySelector(".row");
    const height = first ? first.getBoundingClientRect().height : 64;
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        observer.unobserve(entry.target);
        htmx.trigger(entry.target, "near");
      }
    }, { rootMargin: NEAR });
    for (const block of blocks) {
      block.style.minHeight = `${Math.round(height * Number(block.dataset.rows))}px`;
      observer.observe(block);
    }
  }

  document.addEventListener("htmx:afterSwap", (event) => {
    const block = event.target.closest && event.target.closest(".block[data-rows]");
    if (block && event.target === block) {
      block.style.minHeight = "";
      delete block.dataset.rows;
    }
  });

  // Single keys, which whoever speaks to his machine can turn off.
  const toggle = document.getElementById("keys");
  const on = () => localStorage.getItem(KEYS_OFF) === null;
  function show() {
    if (!toggle) return;
    toggle.textContent = `Single keys: ${on() ? "on" : "off"}`;
    toggle.setAttribute("aria-pressed", String(on()));
  }
  if (toggle) {
    toggle.addEventListener("click", () => {
      if (on()) localStorage.setItem(KEYS_OFF, "1");
      else localStorage.removeItem(KEYS_OFF);
      show();
    });
  }
  show();

  const rows = () => [...document.querySelectorAll(".row")];
  const current = () => document.activeElement && document.activeElement.closest(".row");

  function step(by) {
    const all = rows();
    if (!all.length) return false;
    const at = all.indexOf(current());
    const next = all[at < 0 ? 0 : Math.min(Math.max(at + by, 0), all.length - 1)];
    next.querySelector(".open").focus();
    next.scrollIntoView({ block: "nearest" });
    return true;
  }

  // The undo of the row that has the focus, or else of that which was decided last on this page.
  function undoing() {
    const all = [...document.querySelectorAll('.row [data-key="z"]')];
    const own = all.find((each) => each.closest(".row") === current());
    return own || all.sort((one, other) => other.dataset.seen - one.dataset.seen)[0];
  }

  document.addEventListener("keydown", (event) => {
    if (!on() || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (target.closest("input:not([type=checkbox]), textarea, select")) return;
    const key = event.key;
    if ((key === "j" || key === "k") && rows().length) {
      event.preventDefault();
      step(key === "j" ? 1 : -1);
      return;
    }
    if (key === "q" && !document.querySelector('[data-key="q"]')) {
      location.assign("/");
      return;
    }
    const row = current();
    const place = row && row.querySelector(`[data-key="${CSS.escape(key)}"]`) ? row : document;
    const several = place === document && rows().length && "acfu".includes(key);
    const undo = key === "z" ? undoing() : null;
    const found = several ? null : undo || place.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (found) {
      event.preventDefault();
      if (undo) undo.focus(); // so that its row is the next to be decided
      found.click();
    }
  });

  // A row that was decided is put in the place of the old one, which had the focus: it goes on to the next.
  let decided = null;
  document.addEventListener("htmx:beforeSwap", (event) => {
    const row = event.target.closest && event.target.closest(".row");
    decided = row && row === current() ? row.dataset.id : null;
  });
  document.addEventListener("htmx:afterSettle", () => {
    if (decided === null) return;
    const row = document.getElementById(`item-${decided}`);
    decided = null;
    if (!row) return;
    const next = row.classList.contains("waiting") ? row : row.nextElementSibling || row;
    const open = next.querySelector(".open");
    if (open) open.focus({ preventScroll: false });
  });

  // A phone shows images first; its filters are a tap away.
  const fold = document.querySelector(".fold");
  if (fold && matchMedia("(max-width: 44rem)").matches) fold.open = false;

  watch(document);
})();
