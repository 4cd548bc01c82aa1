/** Numbers as people read them. Called by the views. */

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export function formatNumber(value) {
  return whole.format(value);
}

/** 12.6 M, 671 B. */
export function formatCount(value) {
  const power = value < 1000 ? 0 : Math.min(Math.floor(Math.log10(value) / 3), 4);
  return short.format(value / 1000 ** power) + ["", " K", " M", " B", " T"][power];
}

export function formatSeconds(seconds) {
  if (seconds < 10) return `${seconds.toFixed(seconds < 1 ? 2 : 1)} s`;
  if (seconds < 90) return `${whole.format(seconds)} s`;
  const minutes = seconds / 60;
  return minutes < 90 ? `${whole.format(minutes)} min` : `${(minutes / 60).toFixed(1)} h`;
}

export function formatRate(perSecond) {
  return perSecond < 10 ? perSecond.toFixed(1) : whole.format(perSecond);
}

/** The line below an answer. */
export function statisticsLine(stats) {
  const { tokens, tokensPerSecond, firstTokenS, cachedTokens, promptTokens } = stats;
  const parts = [
    tokens && `${formatNumber(tokens)} token${tokens === 1 ? "" : "s"}`,
    tokensPerSecond && `${formatRate(tokensPerSecond)} tokens/s`,
    firstTokenS !== undefined && `first after ${formatSeconds(firstTokenS)}`,
    cachedTokens && `${formatNumber(cachedTokens)} of ${formatNumber(promptTokens)} prompt tokens cached`,
  ];
  return parts.filter(Boolean).join(" · ");
}
